"""Words between the ranks that a launcher has started, over a disk that does not always take them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from engine.errors import FolderGone
from engine.ranks import Rank
from engine.run.agent import Agent
from engine.run.control import STOPPING_SIGNALS
from engine.run.launched import Elsewhere, Launch, call_file, rank_file, read, tell_end, write
from tests.engine.run.test_folder import make_run

LAUNCH = Launch(Rank(1, 2), 1, "a-0-29500", "127.0.0.1")


def block(run: Path) -> None:
    """Let every write to the ranks' folder fail, as on a full disk."""
    (run / "ranks").write_text("")


def unblock(run: Path) -> None:
    (run / "ranks").unlink()


def test_a_write_that_fails_says_so(tmp_path: Path) -> None:
    block(tmp_path)
    assert write(rank_file(tmp_path, 1), LAUNCH, code=0) is False
    unblock(tmp_path)
    assert write(rank_file(tmp_path, 1), LAUNCH, code=0) is True
    assert read(rank_file(tmp_path, 1), LAUNCH) == {"launch": LAUNCH.name, "code": 0}


@pytest.mark.parametrize("signals", [(), (15,), (10, 12)])
def test_supervisor_tells_a_rank_once_the_disk_takes_it(tmp_path: Path, signals: tuple[int, ...]) -> None:
    block(tmp_path)
    child = Elsewhere(tmp_path, LAUNCH, LAUNCH.rank, "teacher", None)
    for number in signals:
        child.send_signal(number)
    assert child.poll() is None
    unblock(tmp_path)
    assert child.poll() is None
    told = read(call_file(tmp_path, 1), LAUNCH)
    assert told is not None
    assert (told["phase"], told["signals"]) == ("teacher", list(signals))


def test_rank_keeps_an_exit_code_until_the_disk_takes_it(tmp_path: Path) -> None:
    write(call_file(tmp_path, 1), LAUNCH, call=7, phase="teacher", meeting=None, signals=[], supervisor=1)
    agent = Agent(tmp_path, LAUNCH)
    agent._call = 7
    agent._child = subprocess.Popen(["sh", "-c", "exit 9"])
    agent._child.wait()
    (tmp_path / "ranks").rename(tmp_path / "aside")
    block(tmp_path)
    for _ in range(3):
        agent._listen()
    unblock(tmp_path)
    (tmp_path / "aside").rename(tmp_path / "ranks")
    agent._listen()
    told = read(rank_file(tmp_path, 1), LAUNCH)
    assert told is not None
    assert (told["call"], told["code"]) == (7, 9)
    assert agent._child is None


def test_rank_that_is_asked_to_end_asks_the_run_to_stop_and_stays_until_it_has(tmp_path: Path, monkeypatch) -> None:
    run = make_run(tmp_path)
    write(call_file(run.path, 1), LAUNCH, call=7, phase="teacher", meeting=None, signals=[], supervisor=1)
    agent = Agent(run.path, LAUNCH)
    agent._heard(signal.SIGINT, None)
    assert agent._leaves()  # before the first call there may be no run
    assert not (run.path / "control").exists()
    agent._call = 7
    assert not agent._leaves()
    assert not agent._leaves()
    (asked,) = [json.loads(line) for line in (run.path / "control").read_text().splitlines()]
    assert (asked["command"], asked["by"]) == ("stop", "rank 1")
    monkeypatch.setattr("engine.run.agent._STOPPING_SECONDS", 0.0)
    assert agent._leaves()
    monkeypatch.undo()
    agent._heard(signal.SIGTERM, None)
    assert agent._leaves()


def test_rank_hears_the_signals_that_a_run_hears_but_those_that_its_parent_ignores(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in STOPPING_SIGNALS}
    write(tmp_path / "ranks" / "end.json", LAUNCH, code=3)
    try:
        for number in STOPPING_SIGNALS:  # the tests' own parent may ignore some
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        agent = Agent(tmp_path, LAUNCH)
        assert agent.serve() == 3
        heard = {number for number in STOPPING_SIGNALS if signal.getsignal(number) == agent._heard}
        assert heard == {*STOPPING_SIGNALS} - {signal.SIGHUP}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_rank_that_leaves_tells_how_its_phase_ended(tmp_path: Path) -> None:
    write(rank_file(tmp_path, 1), LAUNCH, call=7, beat=1, bytes=0, code=None)
    agent = Agent(tmp_path, LAUNCH)
    agent._call = 7
    agent._child = subprocess.Popen(["sleep", "100"])
    agent._end_child()
    told = read(rank_file(tmp_path, 1), LAUNCH)
    assert told is not None
    assert (told["call"], told["code"]) == (7, -signal.SIGTERM)


def test_end_of_the_run_is_told_or_given_up(tmp_path: Path) -> None:
    block(tmp_path)
    began = time.monotonic()
    tell_end(tmp_path, LAUNCH, 4, patience_seconds=0.2)
    assert time.monotonic() - began >= 0.2
    unblock(tmp_path)
    tell_end(tmp_path, LAUNCH, 4, patience_seconds=0.2)
    assert json.loads((tmp_path / "ranks" / "end.json").read_text()) == {"launch": LAUNCH.name, "code": 4}


def test_rank_ends_when_the_folder_of_the_run_is_gone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run").path
    agent = Agent(folder, LAUNCH)
    agent._call = 7
    agent._child = subprocess.Popen(["sleep", "60"])
    shutil.rmtree(folder)
    with pytest.raises(FolderGone, match="is gone"):
        agent.serve()
    assert agent._child is None, "its phase was ended"
    assert not folder.exists()
