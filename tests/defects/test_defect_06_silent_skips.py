"""The original skipped batches that failed, out of memory too, in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.channel.channel import Channel
from engine.errors import RecordsMissing
from engine.student.train import Progress, train
from tests.engine.student.small_run import make_run
from tests.engine.student.test_train import go, spoil


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("a bug"), MemoryError()])
def test_batch_that_fails_ends_the_training(tmp_path: Path, error: Exception) -> None:
    run = make_run(tmp_path)
    training = run.training()
    calls = iter(range(100))

    def fail(module: torch.nn.Module, given: object) -> None:
        if next(calls) == 2:
            raise error

    training.learner.model.register_forward_pre_hook(fail)
    events = run.events()
    with pytest.raises(type(error)):
        train(training, Progress(), run.checkpoints(events), Channel(events))


def test_record_that_is_missing_ends_the_training(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shard = sorted((tmp_path / "cache").glob("shard-*.h5"))[0]
    run.store.close()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    from tests.engine.student.small_run import open_run

    damaged = open_run(tmp_path)
    with pytest.raises(RecordsMissing):
        go(damaged, damaged.training())


def test_step_that_is_skipped_is_told_and_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    training = run.training(steps=4)
    spoil(training, at_steps={1, 3})
    progress = go(run, training)
    assert progress.skipped == 2
    told = [event["message"] for event in run.read_events("log") if event.get("code") == "bad-numbers"]
    assert ["Step 1 was skipped" in told[0], "Step 3 was skipped" in told[1]] == [True, True]
