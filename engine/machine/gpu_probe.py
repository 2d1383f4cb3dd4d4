"""Ask torch what it can do with one GPU, and print the answer as one line of JSON.

Run in a process of its own, with the GPU as the only one that CUDA sees:

    CUDA_VISIBLE_DEVICES=GPU-… python -m engine.machine.gpu_probe

Without a library that lists GPUs, as for AMD's, Intel's and Apple's, ``--all`` lists what torch finds, one answer each.

The driver's library lists GPUs that torch cannot use: the driver may be older than torch needs, the build may have no
kernels for an old GPU, or no CUDA at all. Only torch itself knows, so it is asked before a plan is made. Knows nothing
of models; gpu_check.py asks and keeps the answer.
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from engine.machine import process_memory, torch_device
from engine.machine.device import Device
from engine.machine.out_of_memory import is_out_of_memory

# Half precision keeps 8 to 11 bits; a product of 256 terms of either sign stays within this share of its size.
_HALF_ERROR = 0.02


def main() -> None:
    """Print the answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the answer itself says that a GPU or driver is old
        found = every_answer() if sys.argv[1:] == ["--all"] else answer()
        print(json.dumps(found))  # noqa: T201 - this is the result


def every_answer() -> list[dict[str, Any]]:
    """Return torch's answers about each GPU that it finds, with kind, index, name and free memory."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        return []
    answers = []
    for index in range(torch_device.count(found)):
        device = torch.device(str(Device(found.type, index)))
        told = {"kind": device.type, "index": index, "name": torch_device.name_of(device)}
        answers.append({**told, **answer(device), "free_bytes": torch_device.memory_of(device)[0]})
    return answers


def answer(device: torch.device | None = None) -> dict[str, Any]:
    """Return torch's answers about a GPU, in the fields of :class:`engine.machine.gpu_check.GpuAnswer`.

    Args:
        device: the first that CUDA sees where it is not given.
    """
    try:
        why_not = "" if device is not None else _why_not_available() or _why_no_kernels()
        if not why_not:
            return _tried(torch.device("cuda:0") if device is None else device)
    except (RuntimeError, AssertionError, OSError) as error:
        if is_out_of_memory(error):
            return {"why_not": "other programs fill its memory", "lasting": False}
        why_not = f"torch cannot compute on it: {_first_line(error)}"
    return {"why_not": why_not}


def has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a build of torch can run on a GPU.

    Args:
        capability: of the GPU, such as (6, 1).
        architectures: ``torch.cuda.get_arch_list()``: machine code (``sm_75``) runs on GPUs of the same major number
            from its minor number on, intermediate code (``compute_90``) on all that are as new or newer. ``sm_90a``
            and the like run on that very GPU.

    Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#application-compatibility
    """
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name)
        if found is None:
            continue
        kind, major, minor, suffix = found[1], int(found[2]), int(found[3]), found[4]
        built_for = (major, minor)
        if suffix == "a":
            fits = capability == built_for
        elif kind == "sm" or suffix:
            fits = capability[0] == major and capability >= built_for
        else:
            fits = capability >= built_for
        if fits:
            return True
    return False


def _why_not_available() -> str:
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return f"the installed torch ({torch.__version__}) was built without CUDA"
    if torch.cuda.is_available():
        return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"torch {torch.__version__} cannot use the driver: {_first_line(error)}"
    return f"torch {torch.__version__} finds no GPU"


def _why_no_kernels() -> str:
    if getattr(torch.version, "hip", None) is not None:
        return ""  # AMD's architectures have other names, and torch says so by itself
    capability, built_for = torch.cuda.get_device_capability(0), torch.cuda.get_arch_list()
    if not built_for or has_kernels(capability, built_for):
        return ""
    return (
        f"torch {torch.__version__} has no kernels for its compute capability {capability[0]}.{capability[1]} (it has "
        f"{', '.join(built_for)}); a build for CUDA 12.6 has kernels for older GPUs"
    )


def _tried(device: torch.device) -> dict[str, Any]:
    """Compute a little, and see whether it is right."""
    free, total = torch_device.memory_of(device)
    if not 0 < free <= total:
        return {"why_not": "it does not tell how much memory it has"}
    # Whole numbers below 2**11: exact in any format that a product may go through.
    left = torch.arange(64 * 32, dtype=torch.float32).view(64, 32) % 13 - 6
    right = torch.arange(32 * 48, dtype=torch.float32).view(32, 48) % 11 - 5
    if not torch.equal((left.to(device) @ right.to(device)).cpu(), left @ right):
        return {"why_not": "it multiplies matrices wrongly"}
    formats = {
        name: _is_half_good(dtype, device) for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
    }
    _train_a_little(device)
    return {
        "why_not": "",
        "total_bytes": int(total),
        "context_bytes": _context_bytes(device),
        "good_formats": [name for name, good in formats.items() if good],
    }


def _is_half_good(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products and their gradients in half precision are finite, and what they should be."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = left @ right
    try:
        found = (left.to(device, dtype) @ right.to(device, dtype)).float().cpu()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False
    return bool(torch.isfinite(found).all() and (found - exact).norm() <= _HALF_ERROR * exact.norm())


def _train_a_little(device: torch.device) -> None:
    """Run the other operations of a phase: their libraries and kernels are part of the context's memory."""
    inputs = torch.randn(2, 4, 64, 32, device=device, requires_grad=True)
    attended = torch.nn.functional.scaled_dot_product_attention(inputs, inputs, inputs, is_causal=True)
    attended.square().mean().backward()
    attended.detach().flatten().sort()
    torch_device.synchronize(device)


def _context_bytes(device: torch.device) -> int | None:
    """Return the process's GPU memory outside of torch's allocator; None if the driver does not report it."""
    held = process_memory.device_bytes(os.getpid())
    return None if not held else max(0, held - torch_device.reserved_bytes(device))


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    main()
