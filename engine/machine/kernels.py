"""Matrix product kernels that oneDNN keeps in a phase's process.

oneDNN compiles a kernel for each shape of product that it meets, and keeps up to 1,024 of them. Their scratch memory
lies between larger blocks and stops the heap from using those again: scoring documents of many lengths in bf16 took up
to 300 MiB more than its tensors. The limit is read with the first product.

Source: oneDNN's developer guide, "Primitive Cache".
"""

from __future__ import annotations

# A training step has some 24 shapes, the same in each step: with a limit of 32 it takes the time that it takes with
# 1,024, and with 1 twice the time.
_TRAINING = 32
# One forward pass has four to six shapes, and the next documents have others. With a limit of 4 a teacher is as fast as
# with 8 or more, and its memory does not grow.
_FORWARD_ONLY = 4


def kernels_environment(phase: str) -> dict[str, str]:
    """The variables to add to the environment of a phase, before its first matrix product."""
    return {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(_TRAINING if phase == "student" else _FORWARD_ONLY)}
