from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
import torch

from engine.channel.channel import Channel
from engine.channel.control import PhaseControl
from engine.errors import BadNumbers, Stopped
from engine.student import learn as learn_module
from engine.student.generate import holdout_prompts
from engine.student.judge import DocumentSums
from engine.student.learn import Learned, Prompts, learn
from engine.student.schedule import Schedule
from engine.student.step import LossScale
from engine.student.train import Training, look
from tests.engine.student.small_run import SmallRun, make_run
from tests.engine.student.test_train import StopsAfter


def run_phase(run: SmallRun, training: Training, control: PhaseControl | None = None) -> Learned:
    events = run.events()
    return learn(
        training,
        run.checkpoints(events),
        Prompts(holdout_prompts(run.tokens, count=2, length=4), end_ids={0}, seed=1),
        loss_scale=LossScale(),
        channel=Channel(events, control),
    )


def test_measures_before_and_after_and_keeps_the_best(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_rows=48, num_holdout=12, record_size=12)
    learned = run_phase(run, run.training(micro_batch=8, gradient_accumulation=1, steps=30, learning_rate=1e-2))
    assert learned.student_after.holdout_loss < learned.student_before.holdout_loss
    assert learned.student_after.kl_to_teacher < learned.student_before.kl_to_teacher
    assert learned.steps == 30
    assert learned.tokens == 30 * 8 * 23
    assert learned.tokens_per_second > 0
    assert len(learned.before_texts) == len(learned.after_texts) == 2
    told = [event["which"] for event in run.read_events("evaluation")]
    assert told[:2] == ["teacher", "student_before"]
    assert told[-1] == "student_after"


def test_student_that_got_worse_is_not_the_one_that_is_kept(run: SmallRun) -> None:
    training = run.training(steps=20, schedule=Schedule(0.5, 20, warmup=0.9), evaluation_rows=100)
    learned = run_phase(run, training)
    assert learned.best_step < 20
    assert look(training).holdout_loss == learned.student_after.holdout_loss
    looks = {event.get("step"): event["holdout_loss"] for event in run.read_events("evaluation")}
    assert math.isclose(looks[learned.best_step], learned.student_after.holdout_loss, rel_tol=1e-6)
    assert looks[learned.best_step] < looks[20]


@pytest.mark.parametrize("rows", [100, 3])
def test_figures_of_a_look_that_saw_the_whole_holdout_are_those_of_the_student(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(learn_module, "look", lambda *given, **more: seen.append("all") or look(*given, **more))
    training = run.training(steps=20, schedule=Schedule(0.5, 20, warmup=0.9), evaluation_rows=rows)
    learned = run_phase(run, training)
    assert len(seen) == (1 if rows == 100 else 2), "before the training, and after it where no look saw all rows"
    documents = DocumentSums(run.tokens.eos_id)
    assert look(training, documents=documents) == learned.student_after
    assert documents.table().tolist() == learned.documents["after"].tolist()
    again = run_phase(run, run.training(steps=20, schedule=Schedule(0.5, 20, warmup=0.9), evaluation_rows=rows))
    assert again.student_after == learned.student_after, "the checkpoints have it too"
    assert len(seen) == (1 if rows == 100 else 3)


def test_resumed_run_reports_what_it_found_before_the_stop(run: SmallRun, tmp_path: Path) -> None:
    whole = run_phase(run, run.training())
    other = make_run(tmp_path / "other")
    with pytest.raises(Stopped):
        run_phase(other, other.training(), StopsAfter(6))  # three batches of hold-out, then steps
    resumed = run_phase(other, other.training())
    assert resumed.student_before == whole.student_before
    assert resumed.student_after == whole.student_after
    assert (resumed.before_texts, resumed.after_texts) == (whole.before_texts, whole.after_texts)
    assert resumed.tokens == whole.tokens
    before = [event for event in other.read_events("evaluation") if event["which"] == "student_before"]
    assert len(before) == 1


def test_stop_during_the_first_measurement_is_heard(run: SmallRun) -> None:
    control = PhaseControl()
    control._heard(signal.SIGTERM, None)
    with pytest.raises(Stopped):
        run_phase(run, run.training(), control)
    assert run.read_events("metric") == []
    assert run_phase(run, run.training()).steps == 6


def test_finished_training_is_not_done_again(run: SmallRun) -> None:
    first = run_phase(run, run.training())
    steps = len(run.read_events("metric"))
    assert run_phase(run, run.training()).student_after == first.student_after
    assert len(run.read_events("metric")) == steps


def test_student_whose_loss_is_no_number_is_a_failure(run: SmallRun) -> None:
    training = run.training(steps=1)
    with torch.no_grad():
        next(training.learner.model.parameters()).fill_(math.nan)
    with pytest.raises(BadNumbers, match="hold-out"):
        run_phase(run, training)
