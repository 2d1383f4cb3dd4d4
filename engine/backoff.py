"""Back-off: the next smaller setting for a phase that ran out of memory.

Pure: settings in, changes out. The effective batch stays what it was, so the student learns the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.config import RunConfig
from engine.machine.device import Device
from engine.planner.phase_settings import StudentSetting
from engine.planner.sizes import head_chunk_tokens, is_large_block, smaller_chunk

HEAD_CHUNK = "head_chunk_tokens"
"""Not a setting: positions whose logits the teacher's head works on at a time, fewer only after a step back."""


@dataclass(frozen=True)
class Step:
    """One step back.

    Attributes:
        changes: (setting or :data:`HEAD_CHUNK`, old value, new value), all to be made together.
    """

    changes: tuple[tuple[str, Any, Any], ...]


def next_step(phase: str, settings: RunConfig, head: HeadBlocks | None = None) -> Step | None:
    """The next smaller setting for a phase, or None when there is none left.

    First freed memory is no longer kept in the process, which changes nothing but the time. Then the micro-batch is
    halved until it is one row; where the vocabulary is so large that a chunk of the teacher's logits
    is, its chunks are quartered; then the teacher is streamed, the student's activations are computed twice instead of
    kept, and what waits (hidden states, moments, on a CPU weights) leaves the compute device. Chunks of usual size are
    cut last: they bring little. None of this changes what the student learns but for rounding: the optimizer's moments
    keep their bits.

    A student has no smaller chunks: the peak of its step is where the gradients are, not in the loss (with 262k ids its
    phase took 587 MiB with chunks of 48 positions and with 12), and a lean one works on slices of the vocabulary.

    A student whose gradients are applied as they come (engine.student.lean_step) is another matter: added up over
    micro-batches they would have to be held, which takes more than half the rows save. Its batch is halved last.

    Args:
        phase: that ran out.
        settings: that it ran with.
        head: of the teacher; None where that is not known, and then no step is about chunks.
    """
    if settings.keep_memory:
        return Step((("keep_memory", True, False),))
    if phase == "teacher":
        batch = settings.teacher_batch or 1
        if batch > 1:
            return Step((("teacher_batch", batch, batch // 2),))
        shorter = None if head is None else head.quartered()
        if head is not None and head.is_large and shorter is not None:
            return shorter
        if not settings.layer_by_layer:
            return Step((("layer_by_layer", False, True),))
        if not settings.cpu_offload:
            return _OFFLOAD
        return shorter
    if phase == "student":
        accumulation = settings.gradient_accumulation or 1
        is_lean = StudentSetting.of(settings, Device.of(settings.device or "cpu")).is_lean
        fewer_rows = _fewer_rows(settings.student_batch or 1, accumulation)
        if fewer_rows is not None and not is_lean:
            return fewer_rows
        if not settings.gradient_checkpointing:
            return Step((("gradient_checkpointing", False, True),))
        if not settings.cpu_offload:
            return _OFFLOAD
        return fewer_rows
    return None


@dataclass(frozen=True)
class HeadBlocks:
    """The logits that a teacher's head works on at a time.

    Attributes:
        vocab_size: rows of the head.
        chunk_tokens: positions in a chunk.
        device: where they are.
    """

    vocab_size: int
    chunk_tokens: int
    device: Device

    @classmethod
    def of(cls, vocab_size: int, settings: RunConfig, chunk_tokens: int | None) -> HeadBlocks:
        """Those of a run; ``chunk_tokens`` is what an earlier step back left, None before one."""
        device = Device.of(settings.device or "cpu")
        return cls(vocab_size, chunk_tokens or head_chunk_tokens(vocab_size, device=device), device)

    @property
    def is_large(self) -> bool:
        """See :func:`engine.planner.sizes.is_large_block`."""
        return is_large_block(self.vocab_size, self.chunk_tokens, device=self.device)

    def quartered(self) -> Step | None:
        """The step to shorter chunks, where there is one."""
        shorter = smaller_chunk(self.chunk_tokens)
        return None if shorter is None else Step(((HEAD_CHUNK, self.chunk_tokens, shorter),))


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
