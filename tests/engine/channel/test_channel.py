"""The channel: progress at a readable rate, requests of any rank, and memory that is saved while it is short."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from engine.channel.channel import Channel
from engine.channel.control import ENDING_SIGNALS, PhaseControl
from engine.channel.events import EventWriter, read_events
from engine.errors import Stopped
from engine.machine.memory_watch import MemoryWatch
from engine.run.control import STOPPING_SIGNALS, RunControl
from engine.student.world import ONE_PROCESS


def told(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "events.jsonl") if event["kind"] == kind]


@pytest.fixture
def events(tmp_path: Path) -> EventWriter:
    return EventWriter(tmp_path / "events.jsonl", phase="student")


class OtherRanks:
    """Ranks of which one was asked to do something."""

    def __init__(self, requests: int = 0) -> None:
        self.requests = requests
        self.asked = 0

    def agree(self, requests: int) -> int:
        self.asked += 1
        return requests | self.requests


class Saver:
    growth_bytes = saved_bytes = 0

    def __init__(self) -> None:
        self.calls: list[bool] = []

    def save_memory(self, on: bool) -> str:
        self.calls.append(on)
        return "less is kept"


def test_progress_has_a_rate_and_the_time_left_and_comes_at_most_so_often(events: EventWriter, tmp_path: Path) -> None:
    channel = Channel(events)
    channel.progress(10, 100, "rows", rate=9.0)
    channel.progress(11, 100, "rows", rate=9.0)
    channel.progress(100, 100, "rows", rate=9.0, seconds=0)
    first, last = told(tmp_path, "progress")
    assert {key: first[key] for key in ("phase", "done", "total", "unit", "rate", "eta_seconds")} == {
        "phase": "student", "done": 10, "total": 100, "unit": "rows", "rate": 9.0, "eta_seconds": 10.0,
    }  # fmt: skip
    assert (last["done"], last["eta_seconds"]) == (100, 0)


@pytest.mark.parametrize("rate", [None, 0.0])
def test_the_time_left_is_open_before_there_is_a_rate(rate: float | None, events: EventWriter, tmp_path: Path) -> None:
    Channel(events).progress(0, 100, "steps", rate=rate)
    assert told(tmp_path, "progress")[0]["eta_seconds"] is None


def test_a_channel_without_requests_never_stops(events: EventWriter) -> None:
    channel = Channel(events)
    channel.safe_point()
    assert not channel.stopping
    assert channel.paused_seconds == 0


def test_a_channel_of_many_ranks_stops_when_any_of_them_was_asked(events: EventWriter) -> None:
    channel, ranks = Channel(events), OtherRanks()
    with channel.agreeing(ranks):
        channel.safe_point()
        ranks.requests = 1
        assert channel.stopping
        ranks.requests = 0  # the safe point acts on the answer that all ranks have, not on a newer one
        with pytest.raises(Stopped):
            channel.safe_point()
    assert ranks.asked == 2
    channel.safe_point()  # outside, each process has its own requests
    assert ranks.asked == 2


def test_one_process_agrees_with_itself(events: EventWriter) -> None:
    control = PhaseControl()
    channel = Channel(events, control)
    with channel.agreeing(ONE_PROCESS):
        channel.safe_point()
        control._heard(signal.SIGTERM, None)
        with pytest.raises(Stopped):
            channel.safe_point()


def test_a_channel_beside_has_the_same_requests_and_other_events(events: EventWriter, tmp_path: Path) -> None:
    control = PhaseControl()
    other = EventWriter(tmp_path / "other.jsonl")
    beside = Channel(events, control).beside(other)
    beside.log("info", "hello", "greeting")
    assert told(tmp_path, "log") == []
    assert [event["code"] for event in read_events(tmp_path / "other.jsonl")] == ["greeting"]
    control._heard(signal.SIGTERM, None)
    with pytest.raises(Stopped):
        beside.safe_point()


def test_memory_is_watched_at_safe_points_of_the_work_that_can_save_it(events: EventWriter, tmp_path: Path) -> None:
    channel, saver = Channel(events), Saver()
    free, seconds = iter([1, 1, 2**30, 1]), iter(range(10))
    watch = MemoryWatch(2**30, lambda: next(free), lambda: next(seconds))
    assert not channel.memory_is_short
    with channel.saving_memory(saver, also="rows are fewer", watch=watch):
        assert channel.memory_is_short, "seen before the first piece of work"
        channel.safe_point()
        assert saver.calls == [True]
        channel.safe_point()
        assert saver.calls == [True, False]
    assert not channel.memory_is_short
    channel.safe_point()
    assert next(free) == 1, "outside, memory is not looked at"
    assert [event["code"] for event in told(tmp_path, "log")] == ["memory-short", "memory-room"]
    assert told(tmp_path, "log")[0]["message"].endswith("Less is kept; rows are fewer.")


def test_every_signal_that_asks_to_end_is_heard_by_a_phase_and_by_its_supervisor(tmp_path, events):
    assert {signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU, signal.SIGALRM} == {*ENDING_SIGNALS}
    before = {number: signal.getsignal(number) for number in STOPPING_SIGNALS}
    try:
        for number in ENDING_SIGNALS:
            phase = PhaseControl.listening(os.getppid(), lambda paused: None)
            os.kill(os.getpid(), number)
            assert phase.stopping, number
        for number in STOPPING_SIGNALS:
            run = RunControl(tmp_path / "control", events)
            run.listen()
            os.kill(os.getpid(), number)
            assert run.stopping, number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
