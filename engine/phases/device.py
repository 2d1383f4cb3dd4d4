"""Where a phase computes, and on whose terms: device, number format, threads, and the budget that can be enforced."""

from __future__ import annotations

import torch

from engine.config import RunConfig
from engine.errors import RequestError
from engine.planner.footprint import CUDA_CONTEXT

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def prepare_torch(settings: RunConfig) -> tuple[torch.device, torch.dtype]:
    """Set torch up for a phase.

    On CUDA the budget becomes the process's memory fraction, so that a 2 GB plan is tried on a 2 GB card's terms.

    Returns:
        The device, and the dtype of the matrix products.

    Raises:
        RequestError: the run wants a GPU that torch does not find.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = torch.device(settings.device or "cpu")
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise RequestError(
                f"--device {device}: torch finds no such GPU.",
                "This installation of torch was built without CUDA, or the driver does not answer.",
                "Use --device cpu, or install a build of torch for your GPU.",
            )
        torch.cuda.set_device(device)
        total_bytes = torch.cuda.get_device_properties(device).total_memory
        if settings.memory_budget:
            fraction = allocator_fraction(settings.memory_budget, total_bytes)
            torch.cuda.set_per_process_memory_fraction(fraction, device)
    return device, _DTYPES[settings.precision or "fp32"]


def allocator_fraction(budget_bytes: int, total_bytes: int) -> float:
    """Share of a GPU's memory that torch's allocator may take: the budget counts the CUDA context, the allocator not.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.cuda.memory.set_per_process_memory_fraction.html
    """
    return min(1.0, max(0, budget_bytes - CUDA_CONTEXT) / total_bytes)


def device_peak_bytes(device: torch.device) -> int | None:
    """Most memory that torch's allocator held on the GPU; None on the CPU."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else None
