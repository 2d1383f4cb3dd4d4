"""A whole run is killed anywhere and continues: the student is that of an undisturbed run, bit for bit.

``python -m tests.crash.harness --kills 200`` is the long version.
"""

from __future__ import annotations

import gc
import json
import os
import random
import threading
import time
from pathlib import Path

import pytest

from engine.channel.channel import Channel
from engine.channel.events import EventWriter, read_events
from engine.disk.runs import announced_runs
from engine.phase_kinds import PHASES
from engine.phases import process as phase
from engine.planner.live_runs import live_runs
from engine.run import control as run_control
from engine.run import walk
from engine.run.folder import Run
from tests.crash.harness import Harness, Kill, Life, _as_process, differing, leftovers, outcome


def test_every_protocol_has_commit_points_that_a_run_passes(harness: Harness) -> None:
    passed = {point.partition(":")[0].rpartition("-")[0] for _, point in harness.points}
    assert {
        "tokens",
        "shard",
        "journal",
        "checkpoint",
        "student",
        "config.json",
        "prepare.json",
        "teacher.json",
        "student.json",
        "manifest.json",
        "report.json",
        "report.md",
    } <= {*passed, *(name.partition("-")[0] for name in passed)}


@pytest.mark.parametrize(
    ("target", "role", "point"),
    [
        ("phase", "teacher", "shard-renamed:2"),
        pytest.param("power", "student", "checkpoint-renamed:3", marks=pytest.mark.slow),
        ("power", "student", "student-renamed:1"),
    ],
)
def test_killed_at_a_commit_point(harness: Harness, target, role, point) -> None:
    assert harness.differences(Kill(target, role, point, 0.0, 1)) == []


@pytest.mark.parametrize("target", ["supervisor", "both"])
def test_killed_at_a_moment(harness: Harness, target) -> None:
    assert harness.differences(Kill(target, "any", None, 0.6, 1)) in ([], None)


@pytest.mark.slow
def test_a_run_that_comes_out_otherwise_is_noticed(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "not_for_memory", lambda killed_before: False)  # as it was once
    said = harness.differences(Kill("phase", "student", "checkpoint-renamed:2", 0.0, 0))
    assert said is not None
    assert "student/README.md differs" in said


@pytest.mark.parametrize("phase", ["teacher", "student"])
def test_stopped_in_either_phase_and_resumed_the_student_is_the_same(harness: Harness, phase: str) -> None:
    for _ in range(9):  # a phase is over in a second, and this process may have to wait for the processor
        folder = harness.new_run()
        life = Life(folder)
        deadline = time.monotonic() + 120
        while ("phase_started", phase) not in kinds_and_phases(folder):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        run_control.request(folder, "stop", by="a test")
        if life.wait() == 130:
            break
    told = list(read_events(folder / "events.jsonl"))
    assert [event["status"] for event in told if event["kind"] == "run_finished"] == ["stopped"]
    assert any(event.get("state") == "stopping" for event in told)
    assert not (folder / "report.json").exists()
    assert Life(folder).wait() == 0
    assert differing(outcome(folder), harness.expected) == []
    assert leftovers(folder) == []


def kinds_and_phases(folder: Path) -> list[tuple[str, str | None]]:
    if not (folder / "events.jsonl").exists():
        return []
    return [(event["kind"], event.get("phase")) for event in read_events(folder / "events.jsonl")]


@pytest.mark.slow
def test_killed_at_twenty_places(harness: Harness) -> None:
    chance = random.Random(7)
    at_points = [*harness.at_points(chance)]
    kills = [at_points[place * len(at_points) // 14] for place in range(14)]
    at_random = harness.at_random(chance)
    kills += [next(at_random) for _ in range(6)]
    wrong = {str(kill): said for kill in kills if (said := harness.differences(kill))}
    assert wrong == {}


@pytest.mark.slow
def test_a_run_of_the_version_without_jobs_continues_and_the_student_is_the_same(harness: Harness) -> None:
    folder = harness.half_done()
    info = json.loads((folder / "run.json").read_text())
    del info["checksum"], info["jobs"]
    (folder / "run.json").write_text(json.dumps({**info, "format": 1}))
    assert Life(folder).wait() == 0
    assert differing(outcome(folder), harness.expected) == []
    assert json.loads((folder / "run.json").read_text())["format"] == 2


@pytest.mark.slow
def test_a_second_run_is_planned_with_what_the_first_has_not_taken_yet(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = harness.new_run()
    info = json.loads((folder / "run.json").read_text())
    del info["checksum"]
    info["predicted"]["student"]["ram_bytes"] = 2**33
    (folder / "run.json").write_text(json.dumps(info))
    first = Life(folder)
    while not (folder / "events.jsonl").exists():  # it has the lock, and has said so
        os.sched_yield()
    found = [run for run in live_runs(folder / "nowhere", announced_runs()) if run.reserved_bytes > 2**32]
    assert first.wait() == 0
    assert len(found) == 1
    assert announced_runs() == []


@pytest.mark.slow
def test_descriptors_and_threads_are_as_before_when_a_phase_has_ended(harness: Harness, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    child = os.fork()
    if child == 0:
        _as_process(tmp_path / "log", lambda: count_over_runs(harness, told))
    assert os.waitpid(child, 0)[1] == 0, (tmp_path / "log").read_text()[-2000:]
    first, *rest = json.loads(told.read_text())
    assert rest == [first] * 2


def count_over_runs(harness: Harness, told: Path) -> int:
    """Three runs one after the other, all their phases in one process; threads and descriptors after each."""
    counts = []
    for _ in range(3):
        run = Run.open(harness.new_run())
        for name in PHASES:
            events = EventWriter(run.events_path, phase=name)
            job = run.job(name)
            phase._body(job)(run, job, Channel(events))
            events.close()
        gc.collect()
        shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm" in line]
        counts.append((len(os.listdir("/proc/self/fd")), threading.active_count(), len(shared)))
    told.write_text(json.dumps(counts))
    return 0
