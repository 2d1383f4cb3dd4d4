"""A training that is killed anywhere and resumed ends with the student of one that was not, bit for bit.

Children are forked: a new interpreter would import torch for seconds before each kill.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.channel.channel import Channel
from engine.student.train import Progress, resume, train
from tests.engine.student.small_run import make_run, open_run
from tests.tiny import tiny_model

POINTS = [
    "checkpoint-weights",
    "checkpoint-optimizer",
    "checkpoint-rng",
    "checkpoint-state",
    "checkpoint-checksums",
    "checkpoint-before-rename",
    "checkpoint-renamed",
    "checkpoint-durable",
    "checkpoint-pruning",
]
KILLED = -signal.SIGKILL


def train_to_the_end(folder: Path) -> None:
    """Train as the phase does, from the state in the folder; write ``end.pt`` at the end."""
    run = open_run(folder)
    torch.manual_seed(5)
    training = run.training(run.learner(tiny_model("gpt2", num_layers=2)), checkpoint_every=1, steps=5)
    for module in training.learner.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    events = run.events()
    checkpoints = run.checkpoints(events)
    channel = Channel(events)
    progress = resume(training, checkpoints, channel) or Progress()
    train(training, progress, checkpoints, channel)
    torch.save({**training.learner.model.state_dict(), "tokens": torch.tensor(progress.tokens)}, folder / "end.pt")


def in_child(work: Callable[[], None], environment: dict[str, str], kill_after: float | None = None) -> int:
    """Run something in a forked process; returns its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            gc.freeze()  # returning memory would look through all that was imported, and copy it
            os.environ.update(environment)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def assert_same_end(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    assert in_child(lambda: train_to_the_end(folder), {}) == 0
    torch.testing.assert_close(torch.load(folder / "end.pt", weights_only=True), expected, rtol=0, atol=0)
    leftovers = [entry.name for entry in (folder / "checkpoints").iterdir() if not entry.name.startswith("step-")]
    assert leftovers == []


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    tiny_model("gpt2", num_layers=2)  # made here once, or every child that is killed would begin with making it
    make_run(folder).store.close()
    assert in_child(lambda: train_to_the_end(folder), {}) == 0
    end: dict[str, torch.Tensor] = torch.load(folder / "end.pt", weights_only=True)
    return end


@pytest.mark.parametrize("passing", [2, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 3))])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_commit_point(tmp_path: Path, expected: dict[str, torch.Tensor], point: str, passing: int) -> None:
    make_run(tmp_path).store.close()
    crash = {"TINYDISTILL_CRASH_AT": f"{point}:{passing}"}
    assert in_child(lambda: train_to_the_end(tmp_path), crash) == KILLED, f"{point} was not passed {passing} times"
    assert_same_end(tmp_path, expected)


def kill_at_random(folder: Path, expected: dict[str, torch.Tensor], seed: int) -> None:
    make_run(folder).store.close()
    chance = random.Random(seed)
    for _ in range(3):
        in_child(lambda: train_to_the_end(folder), {}, kill_after=chance.uniform(0.02, 0.6))
    assert_same_end(folder, expected)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(tmp_path: Path, expected: dict[str, torch.Tensor], seed: int) -> None:
    kill_at_random(tmp_path, expected, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 18))  # 45 kills; the points above name each place between two writes
def test_killed_at_many_random_moments(tmp_path: Path, expected: dict[str, torch.Tensor], seed: int) -> None:
    kill_at_random(tmp_path, expected, seed)
