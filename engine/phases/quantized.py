"""The cost of a quantized teacher: its loss on some hold-out text, in its own weights and quantized.

Both losses are of the same tokens and in the same number format. The own weights are read layer by layer, before the
quantized teacher is loaded, and only where that takes no more memory than the phase was planned with.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.channel.channel import Channel
from engine.data.tokens import TokenFile
from engine.errors import ModelError
from engine.jobs import ScoreJob
from engine.model_files.spec import ModelSpec
from engine.planner.footprint import teacher_footprint
from engine.planner.phase_settings import TeacherSetting
from engine.planner.shape import shape_of
from engine.run.folder import Run
from engine.student.verdict import quantization_in_words

QUANTIZATION = "quantization"


def own_loss(
    run: Run, job: ScoreJob, spec: ModelSpec, tokens: TokenFile, channel: Channel, load: Callable[[ScoreJob], Any]
) -> float | None:
    """Return the loss of the teacher's own weights; None where it is not measured.

    Args:
        run: keeps the result.
        job: the scoring; None is returned if it quantizes nothing, or both losses are known.
        spec: the teacher, described.
        tokens: the rows.
        channel: hears why nothing is measured; may stop.
        load: loads the teacher of a job.
    """
    if job.quantization == "none" or run.result(QUANTIZATION) is not None or not _labels(job, tokens):
        return None
    if not _fits(job, spec):
        _not_measured(channel, "the teacher's own layers do not fit the plan.")
        return None
    channel.log("info", "Reading the teacher's own weights once, to measure the cost of the quantization.", "stage")
    try:
        with contextlib.closing(load(job.changed({"quantization": "none", "layer_by_layer": True}))) as teacher:
            found = _loss(teacher, job, tokens, channel)
    except ModelError as error:
        _not_measured(channel, error.what)
        return None
    if not math.isfinite(found):
        _not_measured(channel, "the loss of the teacher's own weights is no number.")
        return None
    return found


def _fits(job: ScoreJob, spec: ModelSpec) -> bool:
    setting, shape = TeacherSetting.of(job), shape_of(spec)
    streamed = teacher_footprint(shape, replace(setting, quantization="none", layer_by_layer=True))
    planned = teacher_footprint(shape, setting)
    return streamed.peak_bytes <= planned.peak_bytes and streamed.ram_bytes <= planned.ram_bytes


def enter_cost(run: Run, job: ScoreJob, tokens: TokenFile, channel: Channel, teacher: Any, own: float) -> None:
    """Measure the quantized teacher on the same tokens as its own weights, whose loss is ``own``, and keep both."""
    loss = _loss(teacher, job, tokens, channel)
    if not math.isfinite(loss):
        _not_measured(channel, "the loss of the quantized teacher is no number.")
        return
    cost = {"quantized_loss": loss, "own_loss": own, "tokens": _labels(job, tokens)}
    run.finish_phase(QUANTIZATION, cost)
    channel.log("info", quantization_in_words(job.quantization, cost), "quantization-cost")


def _not_measured(channel: Channel, why: str) -> None:
    channel.log("info", f"The cost of the quantization is not measured: {why}")


def _loss(teacher: Any, job: ScoreJob, tokens: TokenFile, channel: Channel) -> float:
    from engine.teacher.depth import mean_loss, piece_of

    return mean_loss(
        teacher,
        piece_of(tokens, "holdout", job.teacher_batch),
        vocab_size=tokens.vocab_size,
        chunk_tokens=job.head_chunk_tokens,
        safe_point=channel.safe_point,
    )


def _labels(job: ScoreJob, tokens: TokenFile) -> int:
    from engine.teacher.depth import num_labels, piece_of

    return num_labels(piece_of(tokens, "holdout", job.teacher_batch))
