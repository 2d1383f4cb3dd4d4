"""The process that phases are made from: it changes no result, can be killed without harm, and ends with its run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from engine.jobs import Job
from engine.phase_kinds import PHASES
from engine.run import control as run_control
from engine.run import preloaded
from engine.run.folder import Run
from tests.end_to_end import program
from tests.jobs import complete, jobs
from tests.tiny import tiny_model

ROOM = {"teacher": {"peak_bytes": 10**9}, "student": {"peak_bytes": 2 * 10**9}, "disk_bytes": 10}
ROOMY = {"device": "cpu", "keep_memory": True, "memory_budget": 3 * 10**9}
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is used on Linux only")


def to_do(names: Sequence[str], **settings: object) -> list[Job]:
    return [job for job in jobs(complete(**{**ROOMY, **settings})) if job.name in names]


@on_linux
@pytest.mark.parametrize(
    ("settings", "phases", "expected"),
    [
        ({}, PHASES, True),
        ({}, PHASES[1:], True),
        ({}, PHASES[2:], False),
        ({"keep_memory": False}, PHASES, False),
        ({"device": "cuda:0"}, PHASES, False),
        ({"memory_budget": 2 * 10**9 + 10**8}, PHASES, False),
        ({"memory_budget": 2**53}, PHASES, True),
    ],
)
def test_it_is_used_where_it_saves_something_and_there_is_room(settings, phases, expected):
    assert preloaded.is_worth_it(to_do(phases, **settings), ROOM) is expected


def test_it_is_not_used_where_a_process_cannot_be_copied(monkeypatch):
    for platform in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        assert not preloaded.is_worth_it(to_do(PHASES), ROOM)


def test_its_command_has_room_for_the_name_of_each_phase():
    assert {len(phase) for phase in PHASES} == {len(preloaded.WAITING)}


def words(folder: Path, **given: object) -> list[object]:
    flags = {
        "teacher": tiny_model("llama"),
        "student": tiny_model("llama", num_layers=2, seed=1),
        "data": program.write_texts(folder),
        "output_dir": folder / "run",
        "samples": 20,
        "steps": 2,
        "device": "cpu",
        # Chosen by how fast the machine is: which steps are looked at, and so which student is kept.
        "evaluations": 1,
        "student_batch": 4,
        "gradient_accumulation": 1,
        "teacher_batch": 4,
    } | given
    return [*(word for name, value in flags.items() for word in (f"--{name}", value)), *program.QUICK]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, measured_cache: Path) -> dict[str, bytes]:
    """Files of a run whose phases are programs of their own."""
    folder = tmp_path_factory.mktemp("alone")
    done = program.run(*words(folder, keep_memory="false"), XDG_CACHE_HOME=str(measured_cache))
    assert done.returncode == 0, done.stderr
    assert not commands_of_phases(folder / "run")
    return program.content(folder / "run")


@on_linux
@pytest.mark.slow
def test_phases_made_from_it_leave_the_same_to_the_last_bit(alone, tmp_path):
    with program.start(*words(tmp_path)) as started:
        seen = {command[-1] for command in watched(tmp_path, lambda: started.poll() is not None)}
        said = started.communicate()
    assert started.returncode == 0, said
    assert seen >= {preloaded.WAITING, "student"}, seen
    assert program.content(tmp_path / "run") == alone
    finished = [event for event in program.events(tmp_path / "run") if event["kind"] == "phase_finished"]
    assert [event["phase"] for event in finished] == list(PHASES)
    assert all(event["user_seconds"] > 0 and event["minor_faults"] > 0 for event in finished)
    assert not commands_of_phases(tmp_path / "run")


@on_linux
@pytest.mark.slow
def test_a_run_continues_when_it_is_killed(alone, tmp_path):
    with program.start(*words(tmp_path)) as started:
        wait_for(lambda: any(command[-1] in ("prepare", "teacher") for command in commands_of_phases(tmp_path / "run")))
        maker = next(pid for pid, name in commands_of_phases(tmp_path / "run") if name == preloaded.WAITING)
        os.kill(maker, signal.SIGKILL)
        said = started.communicate(timeout=200)
    assert started.returncode == 0, said
    assert program.content(tmp_path / "run") == alone
    assert not commands_of_phases(tmp_path / "run")


@on_linux
@pytest.mark.slow
def test_the_ranks_of_a_phase_are_made_from_it_and_go_on_when_it_is_killed(alone, tmp_path):
    makers = set()

    def ranks_at_work() -> bool:
        ranks = [pid for pid, name in commands_of_phases(tmp_path / "run") if name == "teacher"]
        makers.update(map(parent_of, ranks))
        return len(ranks) == 2

    with program.start(*words(tmp_path, processes=2)) as started:
        wait_for(ranks_at_work)
        (maker,) = makers
        os.kill(maker, signal.SIGKILL)
        said = started.communicate(timeout=200)
    assert started.returncode == 0, said
    assert len(Run.open(tmp_path / "run").result("teacher")["world"]) == 2
    assert not commands_of_phases(tmp_path / "run")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("moment", [preloaded.WAITING, "prepare", "student"])
def test_nothing_outlives_its_supervisor(moment, tmp_path):
    with program.start(*words(tmp_path, steps=3000)) as started:
        wait_for(lambda: any(command[-1] == moment for command in commands_of_phases(tmp_path / "run")))
        os.kill(supervisor_of(tmp_path), signal.SIGKILL)
        started.communicate(timeout=100)
    wait_for(lambda: not commands_of_phases(tmp_path / "run"))
    again = program.run("--resume", "--output_dir", tmp_path / "run", "--until", "prepare")
    assert again.returncode == 0, again.stderr


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("keep_memory", ["on", "off"])  # off: each phase is a program of its own
def test_a_pause_that_is_asked_for_while_a_phase_imports_is_kept(keep_memory, tmp_path):
    with program.start(*words(tmp_path), "--keep_memory", keep_memory) as started:
        wait_for(lambda: bool(commands_of_phases(tmp_path / "run")))
        run_control.request(tmp_path / "run", "pause", "test")
        wait_for(lambda: "paused" in states(tmp_path))
        run_control.request(tmp_path / "run", "resume", "test")
        said = started.communicate(timeout=200)
    assert started.returncode == 0, said
    assert Run.open(tmp_path / "run").report_json.exists()


def states(folder: Path) -> list[str]:
    found = program.events(folder / "run")
    return [event["state"] for event in found if event["kind"] == "control" and "state" in event]


def supervisor_of(folder: Path) -> int:
    return int(next(event["pid"] for event in program.events(folder / "run") if event["kind"] == "run_started"))


def commands_of_phases(run: Path) -> list[tuple[int, str]]:
    """Processes of the run in this folder that are a phase or wait to be one: number, and the word for it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "engine.phases.process" in command and str(run) in command:
            found.append((int(entry.name), command[command.index("engine.phases.process") + 1]))
    return found


def watched(folder: Path, is_over: Callable[[], bool]) -> set[tuple[int, str]]:
    seen: set[tuple[int, str]] = set()
    while not is_over():
        seen |= set(commands_of_phases(folder / "run"))
        time.sleep(0.02)
    return seen


def wait_for(is_true: Callable[[], bool], seconds: float = 100) -> None:
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)
