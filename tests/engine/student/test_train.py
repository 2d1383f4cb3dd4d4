from __future__ import annotations

import contextlib
import functools
import itertools
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.channel.channel import Channel
from engine.channel.control import PhaseControl
from engine.errors import BadNumbers, Stopped
from engine.machine.memory_watch import MemoryWatch
from engine.phases.student_memory import StudentSaver
from engine.student.checkpoint import Checkpoints
from engine.student.schedule import Schedule
from engine.student.train import Progress, Training, evaluation_steps, look, resume, train
from tests.engine.student.small_run import SmallRun, make_run
from tests.tiny import tiny_model


class StopsAfter(PhaseControl):
    """Is asked to stop during the n-th step, as by a user in mid-run."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps
        self._count(0)

    def safe_point(self) -> None:
        super().safe_point()
        self._count(1)

    def _count(self, steps: int) -> None:
        self._left -= steps
        if self._left == 1:
            self._heard(signal.SIGTERM, None)


def go(run: SmallRun, training: Training, control: PhaseControl | None = None) -> Progress:
    events = run.events()
    checkpoints = run.checkpoints(events)
    channel = Channel(events, control)
    progress = resume(training, checkpoints, channel) or Progress()
    train(training, progress, checkpoints, channel)
    return progress


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in training.learner.model.state_dict().items()}


def test_student_comes_closer_to_its_teacher(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_rows=64, num_holdout=24, record_size=12, kd_weight=1.0)
    training = run.training(micro_batch=8, gradient_accumulation=1, steps=60, learning_rate=1e-2)
    before = look(training)
    go(run, training)
    after = look(training)
    assert after.kl_to_teacher < 0.6 * before.kl_to_teacher
    assert after.top1_agreement > before.top1_agreement


def test_stopped_and_resumed_ends_bit_for_bit_as_one_that_ran_through(run: SmallRun, tmp_path: Path) -> None:
    whole = run.training()
    go(run, whole)
    other = make_run(tmp_path / "other")
    for steps in (1, 3):
        with pytest.raises(Stopped):
            go(other, other.training(), StopsAfter(steps))
    resumed = other.training()
    progress = go(other, resumed)
    assert progress.step == 6
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [pytest.param(32, marks=pytest.mark.slow), 8])
def test_resumed_with_dropout_ends_the_same(tmp_path: Path, bits: int) -> None:
    # Dropout draws from torch's generator: only a checkpoint that holds it can continue in the same way.
    def training(run: SmallRun) -> Training:
        learner = run.learner(tiny_model("gpt2", num_layers=2, hidden_size=64))
        for module in learner.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        return run.training(learner, bits=bits)

    torch.manual_seed(0)
    whole_run = make_run(tmp_path / "whole")
    whole = training(whole_run)
    go(whole_run, whole)

    torch.manual_seed(0)
    run = make_run(tmp_path / "broken")
    with pytest.raises(Stopped):
        go(run, training(run), StopsAfter(3))
    torch.manual_seed(99)
    resumed = training(run)
    go(run, resumed)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


# A head of its own, and one that is the embedding.
@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "accumulation"), [("llama", 2), ("qwen2", 1)])
def test_every_saving_at_once_continues_as_if_it_had_not_been_stopped(
    tmp_path: Path, architecture: str, accumulation: int
) -> None:
    def training(run: SmallRun) -> Training:
        learner = run.learner(
            tiny_model(architecture, num_layers=2, hidden_size=64, seed=1), gradient_checkpointing=True
        )
        return run.training(learner, micro_batch=4, gradient_accumulation=accumulation, bits=8, lean=True)

    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other")
    whole = training(run)
    go(run, whole)
    with pytest.raises(Stopped):
        go(other, training(other), StopsAfter(2))
    resumed = training(other)
    go(other, resumed)
    assert resumed.is_lean == (accumulation == 1)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [6]), (2, [3, 6]), (5, [2, 3, 4, 5, 6]), (1000, [1, 2, 3, 4, 5, 6])]
)
def test_there_are_as_many_looks_as_were_asked_for_and_the_last_is_at_the_end(
    run: SmallRun, count: int, expected: list[int]
) -> None:
    go(run, run.training(steps=6, evaluations=count, checkpoint_every=100))
    assert [event["step"] for event in run.read_events("evaluation")] == expected
    assert [event["step"] for event in run.read_events("checkpoint")] == expected


def test_events_tell_each_step_and_each_look(run: SmallRun) -> None:
    go(run, run.training(steps=6))
    metrics = run.read_events("metric")
    assert [event["step"] for event in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[0].keys() >= {
        "total_steps", "loss", "ce", "kd", "learning_rate", "grad_norm", "tokens_per_second"
    }  # fmt: skip
    for event in metrics:
        assert math.isclose(event["loss"], 0.8 * event["kd"] + 0.2 * event["ce"], rel_tol=1e-6)
    looks = run.read_events("evaluation")
    assert [event["step"] for event in looks] == sorted(evaluation_steps(6, 5))
    assert {event["which"] for event in looks} == {"student_during"}
    assert run.read_events("progress")[-1]["done"] == 6
    assert run.read_events("checkpoint")[-1]["step"] == 6


def test_last_checkpoints_and_the_best_are_kept(run: SmallRun) -> None:
    # Its learning rate rises until it harms: the best student is one on the way.
    training = run.training(steps=20, schedule=Schedule(0.5, 20, warmup=0.9))
    progress = go(run, training)
    assert progress.best_step in (4, 8, 12, 16)
    assert run.checkpoints(run.events()).steps() == [progress.best_step, 18, 20]


def test_step_with_bad_numbers_changes_nothing_and_is_told(run: SmallRun) -> None:
    training = run.training(steps=4, checkpoint_every=100)
    spoil(training, at_steps={2})
    progress = go(run, training)
    assert progress.skipped == 1
    assert progress.skipped_in_a_row == 0
    assert all(value.isfinite().all() for value in weights(training).values())
    warnings = [event for event in run.read_events("log") if event.get("code") == "bad-numbers"]
    assert len(warnings) == 1
    assert "Step 2 was skipped" in warnings[0]["message"]


def test_bad_numbers_that_stay_end_the_run_and_leave_the_last_good_checkpoint(run: SmallRun) -> None:
    training = run.training(steps=12, checkpoint_every=1)
    spoil(training, at_steps=set(range(3, 13)))
    with pytest.raises(BadNumbers, match="5 steps in a row"):
        go(run, training)
    checkpoints = run.checkpoints(run.events())
    latest = checkpoints.latest()
    assert latest is not None
    fresh = run.training()
    latest.load_weights(fresh.learner.trainable.tensors())
    assert all(value.isfinite().all() for value in weights(fresh).values())


@pytest.mark.parametrize("lean", [False, True])
def test_a_loss_that_explodes_once_is_skipped_and_told(run: SmallRun, lean: bool) -> None:
    training = run.training(steps=30, checkpoint_every=100, micro_batch=4, gradient_accumulation=1, lean=lean)
    explode(training, at_steps={25})
    progress = go(run, training)
    assert (progress.skipped, progress.good_steps) == (1, 29)
    [told] = [event["message"] for event in run.read_events("log") if event.get("code") == "diverged"]
    assert "Step 25 was skipped" in told
    assert "is usual" in told


def test_a_training_that_stays_apart_ends_with_an_explanation_and_is_not_a_student(run: SmallRun) -> None:
    training = run.training(steps=40, checkpoint_every=1, micro_batch=4, gradient_accumulation=1)
    explode(training, at_steps=set(range(25, 41)))
    with pytest.raises(BadNumbers, match=r"5 steps in a row gave a loss far above the usual"):
        go(run, training)
    assert max(run.checkpoints(run.events()).steps()) == 28


def explode(training: Training, at_steps: set[int]) -> None:
    """Let the hidden states be far too large in some steps."""
    steps = itertools.count(1)
    hidden_states = training.learner.hidden_states

    def larger(batch: Any) -> torch.Tensor:
        is_step = torch.is_grad_enabled()
        return hidden_states(batch) * (100.0 if is_step and next(steps) in at_steps else 1.0)

    training.learner.hidden_states = larger  # type: ignore[method-assign]


def spoil(training: Training, at_steps: set[int]) -> None:
    """Let the gradient of one weight be NaN in some steps."""
    parameter = next(iter(training.optimizer.parameters.values()))
    micro_batches = itertools.count()

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        step = next(micro_batches) // training.order.gradient_accumulation + 1
        return gradient * math.nan if step in at_steps else gradient

    parameter.register_hook(hook)


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(run: SmallRun) -> None:
    with pytest.raises(Stopped):
        go(run, run.training(), StopsAfter(4))
    newest = run.folder / "checkpoints" / "step-00000004" / "weights.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 4
    newest.write_bytes(content)
    training = run.training()
    progress = go(run, training)
    assert progress.step == 6
    told = [event["message"] for event in run.read_events("log") if event.get("code") == "damaged"]
    assert len(told) == 1
    assert "step-00000004" in told[0]
    assert "weights.safetensors" in told[0]


def test_micro_batch_may_be_halved_when_a_run_continues(run: SmallRun, tmp_path: Path) -> None:
    whole = run.training(micro_batch=4, gradient_accumulation=1)
    go(run, whole)
    other = make_run(tmp_path / "other")
    with pytest.raises(Stopped):
        go(other, other.training(micro_batch=4, gradient_accumulation=1), StopsAfter(3))
    resumed = other.training(micro_batch=1, gradient_accumulation=4)
    go(other, resumed)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-3, atol=1e-4)


def test_checkpoints_of_a_run_without_any_are_none(run: SmallRun, tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nothing", keep=1, on_problem=print).latest() is None


@pytest.mark.slow
def test_memory_that_runs_short_between_steps_changes_nothing_in_the_student(tmp_path: Path) -> None:
    students = []
    for name in ("roomy", "short"):
        run = make_run(tmp_path / name)
        training = run.training(micro_batch=4, gradient_accumulation=1, steps=8, learning_rate=1e-2)
        free, seconds = itertools.cycle([2**30, 1, 1]), itertools.count()
        watch = MemoryWatch(2**30, functools.partial(next, free), functools.partial(next, seconds))
        events = run.events()
        channel, saver = Channel(events), StudentSaver(training.learner, 0)
        is_short = name == "short"
        with channel.saving_memory(saver, watch=watch) if is_short else contextlib.nullcontext():
            train(training, Progress(), run.checkpoints(events), channel)
        students.append(weights(training))
    told = [event["code"] for event in run.read_events("log")]
    assert told == ["memory-short", "memory-room"] * 2 + ["memory-short"]
    assert "computed again instead of kept" in run.read_events("log")[0]["message"]
    for key, tensor in students[0].items():
        assert torch.equal(tensor, students[1][key]), key
