"""The cost of a quantized teacher is measured where the plan has room for it, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.channel.channel import Channel
from engine.channel.events import EventWriter, read_events
from engine.errors import ModelError
from engine.jobs import ScoreJob
from engine.model_files.spec import read_spec
from engine.phases import quantized
from engine.phases.quantized import own_loss
from tests.jobs import score_job
from tests.tiny import tiny_model


def measured(folder: Path, job: ScoreJob, load: Any, *, known: object = None, rows: int = 3) -> tuple[Any, list[str]]:
    """The own weights' loss, and what was said."""
    channel = Channel(EventWriter(folder / "events.jsonl"))
    run, tokens = SimpleNamespace(result=lambda _: known), SimpleNamespace(num_rows=lambda _: rows)
    found = own_loss(cast(Any, run), job, read_spec(tiny_model("llama")), cast(Any, tokens), channel, load)
    said = [str(event["message"]) for event in read_events(folder / "events.jsonl") if event["kind"] == "log"]
    return found, said


def never(job: ScoreJob) -> Any:
    raise AssertionError(f"the own weights were loaded: {job}")


@pytest.mark.parametrize(
    ("values", "known", "rows"),
    [({}, None, 3), ({"quantization": "nf4"}, {"tokens": 9}, 3), ({"quantization": "nf4"}, None, 0)],
    ids=["not quantized", "measured before", "no hold-out"],
)
def test_nothing_is_loaded_where_there_is_nothing_to_measure(
    tmp_path: Path, values: dict[str, Any], known: object, rows: int
) -> None:
    assert measured(tmp_path, score_job(**values), never, known=known, rows=rows) == (None, [])


def test_own_weights_that_do_not_fit_the_plan_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def larger_unless_quantized(_shape: object, setting: Any) -> Any:
        size = 9 if setting.quantization == "none" else 8
        return SimpleNamespace(peak_bytes=size, ram_bytes=size)

    monkeypatch.setattr(quantized, "teacher_footprint", larger_unless_quantized)
    found, said = measured(tmp_path, score_job(quantization="nf4"), never)
    assert found is None
    assert said == ["The cost of the quantization is not measured: the teacher's own layers do not fit the plan."]


def test_a_teacher_that_cannot_be_streamed_is_scored_without_it(tmp_path: Path) -> None:
    def refused(job: ScoreJob) -> Any:
        assert (job.quantization, job.layer_by_layer) == ("none", True)
        raise ModelError("It cannot be streamed.", "", "")

    found, said = measured(tmp_path, score_job(quantization="int8"), refused)
    assert found is None
    assert said == ["The cost of the quantization is not measured: It cannot be streamed."]
