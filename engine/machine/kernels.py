"""Matrix product kernels that oneDNN keeps in a phase's process, and whether it has any for half precision here.

oneDNN compiles a kernel for each shape of product that it meets, and keeps up to 1,024 of them. Their scratch memory
lies between larger blocks and stops the heap from using those again: scoring documents of many lengths in bf16 took up
to 300 MiB more than its tensors. The limit is read with the first product.

Torch asks oneDNN for products in bf16 where the processor has AVX-512 or newer instructions for them. Elsewhere it
multiplies them by code of its own, which compiles nothing: on a processor with AVX2, the demo's phases in bf16 take as
much beside their tensors as in fp32. The probe asks torch; until it has run, the processor's instruction sets decide.

Source: oneDNN's developer guide, "Primitive Cache"; torch's ``mkldnn_bf16_device_check``.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache

from engine.machine import hardware
from engine.machine.gpu_check import torch_version
from engine.machine.kept_fact import KeptFact

# A training step has some 24 shapes, the same in each step: with a limit of 32 it takes the time that it takes with
# 1,024, and with 1 twice the time.
_TRAINING = 32
# One forward pass has four to six shapes, and the next documents have others. With a limit of 4 a teacher is as fast as
# with 8 or more, and its memory does not grow.
_FORWARD_ONLY = 4


def kernels_environment(phase: str) -> dict[str, str]:
    """The variables to add to the environment of a phase, before its first matrix product."""
    return {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(_TRAINING if phase == "student" else _FORWARD_ONLY)}


# Instruction sets, as engine.machine.hardware names them, with which torch asks oneDNN for products in bf16.
_WITH_KERNELS = frozenset({"AVX-512", "AVX-512 BF16", "AMX", "AMX BF16", "BF16"})

_ANSWER = KeptFact("half_kernels")


def has_half_kernels() -> bool:
    """Return whether oneDNN compiles kernels for products in half precision on this processor."""
    found = _ANSWER.read(_name(_this_machine()))
    if isinstance(found, bool):
        return found
    _, (_, features) = _this_machine()
    return not features or not _WITH_KERNELS.isdisjoint(features)  # where nothing is known, the plan counts them


def keep_half_kernels(found: bool) -> None:
    """Keep torch's answer for this processor."""
    _ANSWER.keep(_name(_this_machine()), found)


@cache
def _this_machine() -> tuple[str, tuple[str, tuple[str, ...]]]:
    """The version of torch, and the processor with its instruction sets. A plan asks hundreds of times."""
    return torch_version(), hardware.processor()


@cache
def _name(machine: tuple[str, tuple[str, tuple[str, ...]]]) -> str:
    return f"kernels-{hashlib.blake2b(json.dumps(machine).encode(), digest_size=6).hexdigest()}"
