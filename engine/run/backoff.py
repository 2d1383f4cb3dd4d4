"""Back-off: the next smaller values for a job that ran out of memory.

Pure: a job in, changes out. The effective batch stays what it was, so the student learns the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.jobs import Change, Job, ScoreJob, TrainJob
from engine.planner.phase_settings import StudentSetting
from engine.planner.sizes import is_large_block, smaller_chunk


@dataclass(frozen=True)
class Step:
    """One step back.

    Attributes:
        changes: values of the job, all to be changed together.
    """

    changes: tuple[Change, ...]


def step_that_fits(job: Job, has_room: Callable[[Job], bool]) -> Step | None:
    """Several steps in one: the first smaller job that has room, or the smallest of all if none has.

    Args:
        job: that ran out of memory.
        has_room: whether a smaller job may fit.

    Returns:
        None when there are no smaller values left.
    """
    changes: dict[str, Change] = {}
    smaller = job
    while (step := next_step(smaller)) is not None:
        for name, old, new in step.changes:
            changes[name] = (name, changes[name][1] if name in changes else old, new)
        smaller = smaller.changed({name: new for name, _, new in step.changes})
        if has_room(smaller):
            break
    return Step(tuple(changes.values())) if changes else None


def next_step(job: Job) -> Step | None:
    """The next smaller values for a job, or None when there are none left.

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
    """
    if job.keep_memory:
        return Step((("keep_memory", True, False),))
    if isinstance(job, ScoreJob):
        return _smaller_scoring(job)
    return _smaller_training(job) if isinstance(job, TrainJob) else None


def _smaller_scoring(job: ScoreJob) -> Step | None:
    if job.teacher_batch > 1:
        return Step((("teacher_batch", job.teacher_batch, job.teacher_batch // 2),))
    chunk = smaller_chunk(job.head_chunk_tokens)
    shorter = None if chunk is None else Step((("head_chunk_tokens", job.head_chunk_tokens, chunk),))
    if is_large_block(job.vocab_size, job.head_chunk_tokens, device=job.where) and shorter is not None:
        return shorter
    if not job.layer_by_layer:
        return Step((("layer_by_layer", False, True),))
    if not job.cpu_offload:
        return _OFFLOAD
    return shorter


def _smaller_training(job: TrainJob) -> Step | None:
    fewer_rows = _fewer_rows(job.student_batch, job.gradient_accumulation)
    if fewer_rows is not None and not StudentSetting.of(job).is_lean:
        return fewer_rows
    if not job.gradient_checkpointing:
        return Step((("gradient_checkpointing", False, True),))
    if not job.cpu_offload:
        return _OFFLOAD
    return fewer_rows


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
