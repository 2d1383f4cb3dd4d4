"""Checkpoints are written while the next step computes, and hold the state of the step that they are named after."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.channel.channel import Channel
from engine.channel.control import PhaseControl
from engine.disk import fault
from engine.errors import BadNumbers, DiskFull, Stopped
from engine.model_files.adapter_shape import AdapterShape
from engine.student import checkpoint, checkpoint_writer
from engine.student.checkpoint_writer import CheckpointWriter
from engine.student.train import Progress, Training, train
from tests.engine.student.small_run import SmallRun, make_run
from tests.tiny import tiny_model

WAYS: dict[str, dict[str, Any]] = {
    "accumulated": {},
    "8-bit moments": {"gradient_accumulation": 1, "bits": 8},
    "lean": {"gradient_accumulation": 1, "lean": True},
    "lean, tied": {"gradient_accumulation": 1, "lean": True},
    "adapter": {},
}


def training_of(run: SmallRun, way: str, **changes: Any) -> Training:
    torch.manual_seed(5)
    adapter = AdapterShape(rank=4, alpha=8.0, targets=("q_proj", "v_proj")) if way == "adapter" else None
    architecture = "qwen2" if way == "lean, tied" else "llama"
    learner = run.learner(tiny_model(architecture, num_layers=2, seed=5), adapter=adapter)
    training = run.training(learner, checkpoint_every=1, steps=4, **WAYS[way], **changes)
    assert training.is_lean == way.startswith("lean")
    return training


def go(run: SmallRun, training: Training, control: PhaseControl | None = None) -> None:
    events = run.events()
    train(training, Progress(), run.checkpoints(events, keep=9), Channel(events, control))


def content(folder: Path) -> dict[str, bytes]:
    """All files of all checkpoints; of the states, without the clock's figures."""
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for path in sorted(folder.glob("checkpoints/step-*/*.safetensors"))
    }


def before_writing(monkeypatch: pytest.MonkeyPatch, call: Callable[[int], object]) -> None:
    """Call something with the step before the files of each checkpoint are written."""
    write = checkpoint.write_pieces

    def later(path: Path, *rest: Any) -> str:
        if path.name.startswith("weights"):
            call(int(path.parent.name.split(".")[1].removeprefix("step-")))
        return write(path, *rest)

    monkeypatch.setattr(checkpoint, "write_pieces", later)


@pytest.mark.parametrize("way", WAYS)
def test_a_slow_disk_changes_nothing_in_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    quick, slow = make_run(tmp_path / "quick"), make_run(tmp_path / "slow")
    go(quick, training_of(quick, way))
    before_writing(monkeypatch, lambda _: time.sleep(0.1))
    go(slow, training_of(slow, way))
    expected = content(quick.folder)
    assert len(expected) == 4 * 3
    assert content(slow.folder) == expected


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_is_written_while_the_next_step_computes(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    training = training_of(run, way)
    forward, overlapped = threading.Condition(), []
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        with forward:
            passes += training.learner.model.training
            forward.notify_all()

    training.learner.model.get_input_embeddings().register_forward_hook(count)

    def wait_for_the_next_step(step: int) -> None:
        if step < 4:
            with forward:
                done = step * training.order.gradient_accumulation
                overlapped.append(forward.wait_for(lambda: passes > done, timeout=20.0))

    before_writing(monkeypatch, wait_for_the_next_step)
    go(run, training)
    assert overlapped == [True] * 3


def test_what_a_forward_pass_changes_is_written_as_it_was(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_of(run, "accumulated")
    model = training.learner.model
    model.register_buffer("calls", torch.zeros(4))

    def count(*_: Any) -> None:
        if model.training:
            model.get_buffer("calls").add_(1)

    model.get_input_embeddings().register_forward_hook(count)
    before_writing(monkeypatch, lambda _: time.sleep(0.1))
    go(run, training)
    calls = []
    for step in range(1, 5):
        saved = run.checkpoints(run.events(), keep=9).read(step)
        assert saved is not None
        with saved.tensors("weights") as weights:
            calls.append(int(weights["calls"][0]))
    assert calls == [2, 4, 6, 8]  # two micro-batches a step


def test_a_full_disk_ends_the_training_and_leaves_the_checkpoint_before(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYDISTILL_ENOSPC_AT", "checkpoint-optimizer:2")
    monkeypatch.setattr(fault, "_passed", Counter())
    with pytest.raises(DiskFull, match="no room for a checkpoint"):
        go(run, training_of(run, "accumulated"))
    assert [entry.name for entry in (run.folder / "checkpoints").iterdir()] == ["step-00000001"]
    assert [event["step"] for event in run.read_events("checkpoint")] == [1]


def test_a_stopped_training_ends_with_its_checkpoint_on_the_disk(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_writing(monkeypatch, lambda _: time.sleep(0.2))
    control = PhaseControl()
    training = training_of(run, "accumulated")
    training.learner.model.get_input_embeddings().register_forward_hook(
        lambda *_: control._heard(signal.SIGTERM, None) if run.read_events("metric") else None
    )
    with pytest.raises(Stopped):
        go(run, training, control)
    last = run.read_events("metric")[-1]["step"]
    assert [event["step"] for event in run.read_events("checkpoint")] == list(range(1, last + 1))
    assert (run.folder / "checkpoints" / f"step-{last:08d}").is_dir()


def test_another_error_is_raised_and_the_checkpoint_that_was_begun_is_there(tmp_path: Path) -> None:
    done: list[int] = []

    def write() -> tuple[Path, int]:
        time.sleep(0.1)
        done.append(1)
        return tmp_path, 3

    def fail_while_it_is_written() -> None:
        with CheckpointWriter(lambda *written: None) as writer:
            writer.begin(1, write)
            raise BadNumbers("It diverged.", "", "")

    with pytest.raises(BadNumbers):
        fail_while_it_is_written()
    assert done == [1]


def test_errors_of_the_thread_reach_the_training_once_and_its_waits_are_counted(tmp_path: Path) -> None:
    def fail() -> tuple[Path, int]:
        time.sleep(0.05)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with CheckpointWriter(lambda *written: None) as writer:
        writer.begin(1, fail)
        with pytest.raises(OSError, match="Input/output"):
            writer.wait()
        writer.wait()
        assert writer.waited_seconds >= 0.04


def test_waiting_for_a_checkpoint_is_no_time_of_a_step(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, join = SimpleNamespace(now=0.0), checkpoint_writer._Writing.join

    def join_later(self: threading.Thread, *arguments: Any) -> None:
        clock.now += 100.0
        join(self, *arguments)

    monkeypatch.setattr(checkpoint_writer._Writing, "join", join_later)
    for module in ("train", "checkpoint_writer"):
        monkeypatch.setattr(f"engine.student.{module}.time", SimpleNamespace(monotonic=lambda: clock.now))
    events, progress = run.events(), Progress()
    train(training_of(run, "accumulated"), progress, run.checkpoints(events), Channel(events))
    assert clock.now == 400.0
    assert progress.seconds == 0.0
