"""Several ranks train the student of one process, within rounding; they agree, and notice a rank that is missing."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.channel.channel import Channel
from engine.channel.control import PhaseControl
from engine.errors import EXIT_RANK_LOST, Stopped
from engine.ranks import LIMIT, MEETING, Rank
from engine.student.checkpoint import Checkpoints
from engine.student.learn import Prompts, learn
from engine.student.learner import Learner
from engine.student.sharded import ShardedWorld
from engine.student.step import LossScale
from engine.student.train import Progress, train
from engine.student.world import ONE_PROCESS, World
from tests.engine.student.frozen import resident, streamed
from tests.engine.student.ranks import STEPS, assert_same, end_of, ended, go_on, in_ranks, keep_weights, training_of
from tests.engine.student.small_run import make_run, open_run
from tests.tiny import tiny_model

FROZEN: dict[str, Callable[[Path], Learner]] = {
    "in memory": lambda folder: resident(folder, torch.float32, "none"),
    "streamed in nf4": lambda folder: streamed(folder, torch.float32, "nf4"),
}


@pytest.mark.parametrize(
    ("architecture", "world", "accumulation"),
    [
        ("llama", 2, 1),
        pytest.param("qwen2", 4, 2, marks=pytest.mark.slow),  # a tied head; more ranks than the last step has rows
        pytest.param("gpt2", 3, 1, marks=pytest.mark.slow),  # rows that cannot be divided evenly
    ],
)
def test_ranks_train_the_student_of_one_process(
    tmp_path: Path, architecture: str, world: int, accumulation: int
) -> None:
    changes = {"architecture": architecture, "gradient_accumulation": accumulation}
    folders = {name: tmp_path / name for name in ("one", "many")}
    for folder in folders.values():
        make_run(folder, short=True)
    go_on(folders["one"], None, STEPS, **changes)
    many = folders["many"]
    assert ended(in_ranks(world, tmp_path / "store", lambda w: go_on(many, w, STEPS, **changes))) == [0] * world
    assert_same(end_of(many), end_of(folders["one"]))
    for rank in range(1, world):
        torch.testing.assert_close(end_of(many, rank), end_of(many), rtol=0, atol=0)
    events = {name: open_run(folder).read_events("metric") for name, folder in folders.items()}
    assert len(events["one"]) == STEPS
    for one, other in zip(events["one"], events["many"][::world], strict=True):
        assert other["step"] == one["step"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.parametrize("base", ["in memory", pytest.param("streamed in nf4", marks=pytest.mark.slow)])
def test_changing_numbers_of_ranks_train_the_adapter_of_one_process(tmp_path: Path, base: str) -> None:
    folders = {name: tmp_path / name for name in ("one", "many")}
    for folder in folders.values():
        make_run(folder, short=True)
    changes = {"frozen": FROZEN[base], "learning_rate": 2e-2, "micro_batch": 2, "gradient_accumulation": 2}
    go_on(folders["one"], None, 6, **changes)
    many = folders["many"]
    for part, (world, steps) in enumerate([(2, 2), (1, 4), (3, 6)]):
        if world == 1:
            go_on(many, None, steps, **changes)
            continue
        pids = in_ranks(world, tmp_path / f"store-{part}", lambda w, steps=steps: go_on(many, w, steps, **changes))
        assert ended(pids) == [0] * world
    assert_same(end_of(many), end_of(folders["one"]))
    first = FROZEN[base](tiny_model("llama", num_layers=2, seed=5)).trainable.tensors()
    assert all((end_of(many)[name] - tensor).norm() > 1e-3 for name, tensor in first.items()), "all of it has learned"
    for rank in (1, 2):
        torch.testing.assert_close(end_of(many, rank), end_of(many), rtol=0, atol=0)


@pytest.mark.slow
def test_a_run_continues_with_another_number_of_ranks(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("one", "many")}
    for folder in folders.values():
        make_run(folder)
    go_on(folders["one"], None, STEPS)
    many = folders["many"]
    for part, (world, steps) in enumerate([(2, 7), (4, 14), (1, STEPS)]):
        if world == 1:
            go_on(many, None, steps)
            continue
        pids = in_ranks(world, tmp_path / f"store-{part}", lambda w, steps=steps: go_on(many, w, steps))
        assert ended(pids) == [0] * world
    assert_same(end_of(many), end_of(folders["one"]))


@pytest.mark.parametrize("base", [None, "streamed in nf4", pytest.param("in memory", marks=pytest.mark.slow)])
def test_a_step_with_fewer_rows_than_ranks_is_the_same_step(tmp_path: Path, base: str | None) -> None:
    changes: dict[str, Any] = {} if base is None else {"frozen": FROZEN[base]}
    make_run(tmp_path / "one", num_rows=5)
    make_run(tmp_path / "many", num_rows=5)

    def short(folder: Path, world: World | None) -> None:
        run = open_run(folder)
        training = replace(training_of(run, **changes), world=world or ONE_PROCESS)
        training = replace(training, order=replace(training.order, total_rows=5))  # steps of four rows and one row
        events = run.events()
        train(training, Progress(), run.checkpoints(events), Channel(events))
        keep_weights(training, folder)

    short(tmp_path / "one", None)
    assert ended(in_ranks(2, tmp_path / "store", lambda world: short(tmp_path / "many", world))) == [0, 0]
    assert_same(end_of(tmp_path / "many"), end_of(tmp_path / "one"))
    losses = [[event["loss"] for event in open_run(tmp_path / name).read_events("metric")] for name in ("one", "many")]
    assert losses[1][::2] == losses[1][1::2] == pytest.approx(losses[0], rel=1e-5), "each rank tells the whole step's"


KINDS = pytest.mark.parametrize("kind", [World, pytest.param(ShardedWorld, marks=pytest.mark.slow)])


class AskedOnRank(PhaseControl):
    """A person's request that one rank hears, at a step; the other ranks never do."""

    def __init__(self, world: World, rank: int, number: int) -> None:
        super().__init__()
        self._number = number if world.rank.number == rank else None
        self._steps = 0

    @property
    def stopping(self) -> bool:
        self._steps += 1
        if self._number is not None and self._steps == 3:
            self._heard(self._number, None)
        return super().stopping


@KINDS
def test_a_stop_that_one_rank_hears_stops_all_at_the_same_step(tmp_path: Path, kind: type[World]) -> None:
    make_run(tmp_path)

    def work(world: World) -> None:
        go_on(tmp_path, world, STEPS, AskedOnRank(world, 1, signal.SIGTERM))

    assert ended(in_ranks(2, tmp_path / "store", work, kind=kind)) == [Stopped.exit_code] * 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


@KINDS
def test_a_rank_that_is_killed_ends_the_others_and_a_checkpoint_is_there(tmp_path: Path, kind: type[World]) -> None:
    make_run(tmp_path)

    def work(world: World) -> None:
        go_on(tmp_path, world, STEPS, Killed() if world.rank.number else None)

    assert ended(in_ranks(2, tmp_path / "store", work, kind=kind)) == [EXIT_RANK_LOST, -signal.SIGKILL]
    assert (tmp_path / "checkpoints" / "step-00000005").is_dir()


class Killed(PhaseControl):
    """Kills its own process at the seventh step; another signal can be named."""

    def __init__(self, number: int = signal.SIGKILL) -> None:
        super().__init__()
        self._number = number
        self._steps = 0

    def safe_point(self) -> None:
        self._steps += 1
        if self._steps == 7:
            os.kill(os.getpid(), self._number)
        super().safe_point()


@KINDS
def test_a_rank_that_does_not_answer_ends_the_others_within_the_limit(tmp_path: Path, kind: type[World]) -> None:
    make_run(tmp_path)

    def work(world: World) -> None:
        go_on(tmp_path, world, STEPS, Killed(signal.SIGSTOP) if world.rank.number else None)

    first, stopped = in_ranks(2, tmp_path / "store", work, seconds=3, kind=kind)
    try:
        assert ended([first]) == [EXIT_RANK_LOST]
    finally:
        os.kill(stopped, signal.SIGKILL)
        os.waitpid(stopped, 0)
    assert (tmp_path / "checkpoints" / "step-00000005").is_dir()


LIMIT_OF_TESTS = 2.0


def test_ranks_that_work_apart_wait_for_each_other_beyond_the_limit(tmp_path: Path) -> None:
    def work(world: World) -> None:
        for slow in (0, 1):
            with world.apart():
                if world.rank.number == slow:
                    time.sleep(1.5 * LIMIT_OF_TESTS)
                    (tmp_path / f"{slow}").touch()
            assert (tmp_path / f"{slow}").exists()
        world.agree(0)

    assert ended(in_ranks(3, tmp_path / "store", work, seconds=LIMIT_OF_TESTS)) == [0, 0, 0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("is_alone", [True, False])
def test_a_rank_that_is_lost_while_ranks_work_apart_ends_the_others(
    tmp_path: Path, number: int, is_alone: bool
) -> None:
    def work(world: World) -> None:
        with world.apart():
            if world.rank.number == 0:
                os.kill(os.getpid(), number)
            elif not is_alone:  # it finds out when its own work is done
                time.sleep(1.0)

    first, second = in_ranks(2, tmp_path / "store", work, seconds=LIMIT_OF_TESTS)
    try:
        assert ended([second]) == [EXIT_RANK_LOST]
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)


def test_an_error_of_a_rank_that_works_apart_is_its_own_and_ends_the_others(tmp_path: Path) -> None:
    def work(world: World) -> None:
        with world.apart():
            if world.rank.number == 0:
                raise Stopped("", "", "")

    assert ended(in_ranks(2, tmp_path / "store", work)) == [Stopped.exit_code, EXIT_RANK_LOST]


@KINDS
@pytest.mark.parametrize(
    "slow", ["_write", *(pytest.param(name, marks=pytest.mark.slow) for name in ("latest", "read"))]
)
def test_checkpoints_may_take_longer_than_the_limit(
    tmp_path: Path, kind: type[World], slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path)
    plain = getattr(Checkpoints, slow)
    pauses = [1.5 * LIMIT_OF_TESTS]

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(pauses.pop() if pauses else 0)
        return plain(*args, **kwargs)

    monkeypatch.setattr(Checkpoints, slow, slowly)
    for part, steps in enumerate((5, 6)):
        pids = in_ranks(
            2, tmp_path / f"store-{part}", lambda w, steps=steps: go_on(tmp_path, w, steps),
            seconds=LIMIT_OF_TESTS, kind=kind,
        )  # fmt: skip
        assert ended(pids) == [0, 0]


def test_the_limit_is_that_of_the_environment_or_the_given_one(tmp_path: Path) -> None:
    for number, limit in enumerate(({}, {LIMIT: "5"})):
        world = World.join(Rank(0, 1), {MEETING: f"file://{tmp_path}/{number}", **limit}, 1800)
        world.leave()
        assert world.seconds == (5 if limit else 1800)


def test_ranks_pause_together_though_they_hear_it_apart(tmp_path: Path) -> None:
    def work(world: World) -> None:
        control = PhaseControl()
        with control.agreeing(world.agree):
            if world.rank.number:
                control._heard(signal.SIGUSR1, None)
                threading.Timer(0.3, lambda: control._heard(signal.SIGUSR2, None)).start()
            control.safe_point()
        (tmp_path / f"{world.rank.number}.json").write_text(json.dumps(control.paused_seconds))

    assert ended(in_ranks(2, tmp_path / "store", work)) == [0, 0]
    assert all(json.loads((tmp_path / f"{rank}.json").read_text()) > 0.2 for rank in range(2))


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (World, None),
        pytest.param(ShardedWorld, None, marks=pytest.mark.slow),
        pytest.param(World, "streamed in nf4", marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_by_ranks_gives_the_figures_of_one(tmp_path: Path, kind: type[World], base: str | None) -> None:
    changes: dict[str, Any] = {} if base is None else {"frozen": FROZEN[base]}

    def learned(folder: Path, world: World | None) -> None:
        run = open_run(folder)
        training = training_of(run, steps=2, micro_batch=2, world=world, **changes)
        events = run.events()
        found = learn(
            training, run.checkpoints(events), Prompts([[5, 6]], end_ids=[0], seed=1),
            loss_scale=LossScale(),
            channel=Channel(events),
        )  # fmt: skip
        told = [found.student_before.as_dict(), found.student_after.as_dict(), found.documents["after"].tolist()]
        (folder / f"{training.rank.number}.json").write_text(json.dumps(told))

    for name in ("one", "many"):
        make_run(tmp_path / name, num_holdout=7)
    learned(tmp_path / "one", None)
    pids = in_ranks(2, tmp_path / "store", lambda world: learned(tmp_path / "many", world), kind=kind)
    assert ended(pids) == [0, 0]
    one, first, second = (
        json.loads((tmp_path / name).read_text()) for name in ("one/0.json", "many/0.json", "many/1.json")
    )
    assert first == second, "each rank has the whole result"
    for ours, theirs in zip(first[:2], one[:2], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert first[2] == [pytest.approx(row, rel=1e-4) for row in one[2]]


def test_the_rows_of_a_step_are_divided_among_the_ranks(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    order = run.training(micro_batch=2, gradient_accumulation=3, steps=3).order
    for world in (1, 2, 4, 5, 9):
        for step in range(order.total_steps):
            each = [order.micro_batches(step, Rank(number, world)) for number in range(world)]
            rows = [row for batches in each for batch in batches for row in batch]
            assert rows == [row for batch in order.micro_batches(step) for row in batch]
            assert all(len(batch) <= 2 for batches in each for batch in batches)
