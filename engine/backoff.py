"""What to do with less memory: the next smaller setting of a phase that ran out.

Pure: settings in, changes out. The effective batch stays what it was, so the student learns the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.config import RunConfig


@dataclass(frozen=True)
class Step:
    """One step back.

    Attributes:
        changes: (setting, old value, new value), all to be made together.
    """

    changes: tuple[tuple[str, Any, Any], ...]


def next_step(phase: str, settings: RunConfig) -> Step | None:
    """The next smaller setting for a phase, or None when there is none left.

    The micro-batch is halved until it is one row; then the teacher is streamed, the student's activations are computed
    twice instead of kept, and what waits (hidden states, moments, on a CPU weights) leaves the compute device. None of
    this changes what the student learns but for rounding: the optimizer's moments keep their bits.

    A student whose gradients are applied as they come (engine.student.lean_step) is another matter: added up over
    micro-batches they would have to be held, which takes more than half the rows save. Its batch is halved last.
    """
    if phase == "teacher":
        batch = settings.teacher_batch or 1
        if batch > 1:
            return Step((("teacher_batch", batch, batch // 2),))
        if not settings.layer_by_layer:
            return Step((("layer_by_layer", False, True),))
        if not settings.cpu_offload:
            return _OFFLOAD
    if phase == "student":
        accumulation = settings.gradient_accumulation or 1
        is_lean = settings.optimizer == "adamw-8bit" and accumulation == 1 and settings.precision != "fp16"
        fewer_rows = _fewer_rows(settings.student_batch or 1, accumulation)
        if fewer_rows is not None and not is_lean:
            return fewer_rows
        if not settings.gradient_checkpointing:
            return Step((("gradient_checkpointing", False, True),))
        if not settings.cpu_offload:
            return _OFFLOAD
        return fewer_rows
    return None


_OFFLOAD = Step((("cpu_offload", False, True),))


def _fewer_rows(batch: int, accumulation: int) -> Step | None:
    if batch == 1:
        return None
    # An odd batch cannot be halved without changing the effective batch: one row at a time keeps it.
    smaller = batch // 2 if batch % 2 == 0 else 1
    return Step(
        (
            ("student_batch", batch, smaller),
            ("gradient_accumulation", accumulation, accumulation * (batch // smaller)),
        )
    )
