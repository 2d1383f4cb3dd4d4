"""The cost of a quantized teacher: its loss on some hold-out text, in its own weights and quantized.

Both losses are of the same tokens and in the same number format. The own weights are read layer by layer, before the
quantized teacher is loaded, and only where that takes no more memory than the phase was planned with.
"""

from __future__ import annotations

import contextlib
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
from engine.planner.sizes import wave_tokens
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
    if job.quantization == "none" or run.result(QUANTIZATION) is not None or not tokens.num_rows("holdout"):
        return None
    setting, shape = TeacherSetting.of(job), shape_of(spec)
    streamed = teacher_footprint(shape, replace(setting, quantization="none", layer_by_layer=True))
    planned = teacher_footprint(shape, setting)
    if streamed.peak_bytes > planned.peak_bytes or streamed.ram_bytes > planned.ram_bytes:
        channel.log(
            "info", "The cost of the quantization is not measured: the teacher's own layers do not fit the plan."
        )
        return None
    try:
        with contextlib.closing(load(job.changed({"quantization": "none", "layer_by_layer": True}))) as teacher:
            return _loss(teacher, job, spec, tokens, channel)
    except ModelError as error:
        channel.log("info", f"The cost of the quantization is not measured: {error.what}")
        return None


def enter_cost(
    run: Run, job: ScoreJob, spec: ModelSpec, tokens: TokenFile, channel: Channel, teacher: Any, own: float
) -> None:
    """Measure the quantized teacher on the same tokens as its own weights, whose loss is ``own``, and keep both."""
    loss = _loss(teacher, job, spec, tokens, channel)
    count = sum(int(piece.scored[:, 1:].sum()) for piece in _text(job, tokens))
    cost = {"quantized_loss": loss, "own_loss": own, "tokens": count}
    run.finish_phase(QUANTIZATION, cost)
    channel.log("info", quantization_in_words(job.quantization, cost), "quantization-cost")


def _loss(teacher: Any, job: ScoreJob, spec: ModelSpec, tokens: TokenFile, channel: Channel) -> float:
    from engine.teacher.depth import Bench

    wave = wave_tokens(
        spec.hidden_size, job.teacher_batch * tokens.sequence_length, layer_by_layer=True, device=job.where
    )
    bench = Bench(
        teacher,
        vocab_size=tokens.vocab_size,
        wave_tokens=wave,
        chunk_tokens=job.head_chunk_tokens,
        safe_point=channel.safe_point,
    )
    return bench.whole_loss(_text(job, tokens))


def _text(job: ScoreJob, tokens: TokenFile) -> Any:
    from engine.teacher.depth import piece_of

    return piece_of(tokens, "holdout", job.teacher_batch)
