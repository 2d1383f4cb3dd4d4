"""The original's resume restored the epoch's number and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.channel.channel import Channel
from engine.errors import Stopped
from engine.student.train import resume
from tests.engine.student.small_run import make_run
from tests.engine.student.test_train import StopsAfter, go, weights


def test_weights_moments_place_counters_and_generators_come_back(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    torch.manual_seed(1)
    stopped = run.training()
    with pytest.raises(Stopped):
        go(run, stopped, StopsAfter(3))
    drawn = torch.rand(3)

    torch.manual_seed(2)
    again = run.training()
    progress = resume(again, run.checkpoints(run.events()), Channel(run.events()))
    assert progress is not None
    assert (progress.step, progress.tokens) == (3, 3 * 4 * 23)
    assert progress.best_step == 3
    assert again.optimizer.updates == 3
    assert torch.equal(torch.rand(3), drawn)
    torch.testing.assert_close(weights(again), weights(stopped), rtol=0, atol=0)
    torch.testing.assert_close(again.optimizer.state(), stopped.optimizer.state(), rtol=0, atol=0)


def test_resumed_run_reads_on_where_it_was_and_at_the_same_learning_rate(tmp_path: Path) -> None:
    whole, broken = make_run(tmp_path / "whole"), make_run(tmp_path / "broken")
    go(whole, whole.training())
    with pytest.raises(Stopped):
        go(broken, broken.training(), StopsAfter(2))
    go(broken, broken.training())
    expected, found = whole.read_events("metric"), broken.read_events("metric")
    for name in ("step", "loss", "ce", "kd", "learning_rate", "grad_norm"):
        assert [event[name] for event in found] == [event[name] for event in expected], name
