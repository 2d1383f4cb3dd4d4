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

    The micro-batch is halved until it is one row; then the teacher is streamed, and the student's activations are
    computed twice instead of kept.
    """
    if phase == "teacher":
        batch = settings.teacher_batch or 1
        if batch > 1:
            return Step((("teacher_batch", batch, batch // 2),))
        if not settings.layer_by_layer:
            return Step((("layer_by_layer", False, True),))
    if phase == "student":
        batch, accumulation = settings.student_batch or 1, settings.gradient_accumulation or 1
        if batch > 1:
            # An odd batch cannot be halved without changing the effective batch: one row at a time keeps it.
            smaller = batch // 2 if batch % 2 == 0 else 1
            return Step(
                (
                    ("student_batch", batch, smaller),
                    ("gradient_accumulation", accumulation, accumulation * (batch // smaller)),
                )
            )
        if not settings.gradient_checkpointing:
            return Step((("gradient_checkpointing", False, True),))
    return None
