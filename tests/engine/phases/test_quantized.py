"""The cost of a quantized teacher is measured where the plan has room for it, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from engine.channel.channel import Channel
from engine.channel.events import EventWriter, read_events
from engine.data.tokens import TokenFile
from engine.errors import ModelError
from engine.jobs import ScoreJob
from engine.model_files.spec import read_spec
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from engine.phases import quantized
from engine.phases.quantized import enter_cost, own_loss
from tests.engine.student.small_run import make_run
from tests.jobs import score_job
from tests.tiny import VOCAB_SIZE, tiny_model

NF4 = score_job(VOCAB_SIZE, quantization="nf4", sequence_length=24)
NOT_MEASURED = "The cost of the quantization is not measured: "


class Kept:
    """A run that keeps results in memory."""

    def __init__(self, known: dict[str, Any] | None = None) -> None:
        self.known = known

    def result(self, _: str) -> dict[str, Any] | None:
        return self.known

    def finish_phase(self, _: str, result: dict[str, Any]) -> None:
        self.known = result


class Case:
    """Some rows, and what is said of them."""

    def __init__(self, folder: Path, holdout: int) -> None:
        self._folder = folder
        self.tokens: TokenFile = make_run(folder, num_holdout=holdout).tokens
        self.channel = Channel(EventWriter(folder / "log.jsonl"))

    def own(self, job: ScoreJob, load: Callable[[ScoreJob], Any], run: Kept | None = None) -> float | None:
        return own_loss(cast(Any, run or Kept()), job, read_spec(tiny_model("llama")), self.tokens, self.channel, load)

    @property
    def said(self) -> list[str]:
        found = [event for event in read_events(self._folder / "log.jsonl") if event["kind"] == "log"]
        return [str(event["message"]) for event in found if event.get("code") != "stage"]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, holdout=6)


def never(job: ScoreJob) -> Any:
    raise AssertionError(f"the own weights were loaded: {job}")


def gives(value: float) -> Any:
    """A teacher whose logits are all one value."""
    return SimpleNamespace(
        last_hidden_states=lambda ids, **_: [torch.zeros(*each.shape, 8) for each in ids],
        logits=lambda states: torch.full((len(states), VOCAB_SIZE), value),
        close=lambda: None,
    )


def test_both_losses_are_of_the_same_tokens(case: Case) -> None:
    folder, run, cpu = tiny_model("llama"), Kept(), torch.device("cpu")
    own = case.own(NF4, lambda job: StreamedTeacher(folder, dtype=torch.float32, device=cpu), run)
    whole = ResidentTeacher(folder, dtype=torch.float32)
    assert own is not None
    enter_cost(cast(Any, run), NF4, case.tokens, case.channel, whole, own)
    assert run.known is not None
    assert run.known["quantized_loss"] == pytest.approx(own, rel=1e-6), "of a teacher that is not quantized"
    enter_cost(
        cast(Any, run),
        NF4,
        case.tokens,
        case.channel,
        ResidentTeacher(folder, dtype=torch.float32, quantization="nf4"),
        own,
    )
    assert run.known["own_loss"] == own != run.known["quantized_loss"]
    scored = case.tokens.rows("holdout", range(6)).scored
    assert run.known["tokens"] == scored.sum(), "six rows are fewer than 512 tokens: all of them"
    assert case.said[-1].startswith("In nf4 the teacher's loss is ")


@pytest.mark.parametrize(
    ("job", "run"),
    [(score_job(VOCAB_SIZE, sequence_length=24), Kept()), (NF4, Kept({"tokens": 9}))],
    ids=["not quantized", "measured before"],
)
def test_nothing_is_loaded_where_there_is_nothing_to_measure(case: Case, job: ScoreJob, run: Kept) -> None:
    assert case.own(job, never, run) is None
    assert case.said == []


def test_nothing_is_loaded_without_a_hold_out(tmp_path: Path) -> None:
    case = Case(tmp_path, holdout=0)
    assert case.own(NF4, never) is None
    assert case.said == []


def test_own_weights_that_do_not_fit_the_plan_are_not_loaded(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def larger_unless_quantized(_shape: object, setting: Any) -> Any:
        size = 9 if setting.quantization == "none" else 8
        return SimpleNamespace(peak_bytes=size, ram_bytes=size)

    monkeypatch.setattr(quantized, "teacher_footprint", larger_unless_quantized)
    assert case.own(NF4, never) is None
    assert case.said == [f"{NOT_MEASURED}the teacher's own layers do not fit the plan."]


def test_a_teacher_that_cannot_be_streamed_is_scored_without_it(case: Case) -> None:
    def refused(job: ScoreJob) -> Any:
        assert (job.quantization, job.layer_by_layer) == ("none", True)
        raise ModelError("It cannot be streamed.", "", "")

    assert case.own(NF4, refused) is None
    assert case.said == [f"{NOT_MEASURED}It cannot be streamed."]


def test_a_loss_that_is_no_number_is_said_and_not_kept(case: Case) -> None:
    run = Kept()
    assert case.own(NF4, lambda _: gives(math.nan), run) is None
    enter_cost(cast(Any, run), NF4, case.tokens, case.channel, gives(math.inf), 3.4)
    assert run.known is None
    assert case.said == [
        f"{NOT_MEASURED}the loss of the teacher's own weights is no number.",
        f"{NOT_MEASURED}the loss of the quantized teacher is no number.",
    ]
