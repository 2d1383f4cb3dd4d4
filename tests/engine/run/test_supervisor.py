"""The supervisor when a phase ends, without real phases: kills, lack of memory, an orphaned phase."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.channel.events import EventWriter, read_events
from engine.channel.words import budgeted
from engine.errors import (
    EXIT_OUT_OF_MEMORY,
    EXIT_OVERFLOWED,
    BadNumbers,
    FolderGone,
    ModelError,
    OutOfMemory,
    PhaseDied,
    RunFailed,
)
from engine.jobs import Job, ScoreJob
from engine.machine import gpu_check, hardware, process_memory
from engine.phases import process as phase_module
from engine.ranks import ALONE
from engine.run.child import Started
from engine.run.control import RunControl
from engine.run.folder import Run
from engine.run.phase_environment import environment_for
from engine.run.phase_start import PhaseStarter
from engine.run.phase_watch import Ending, PhaseWatch
from engine.run.supervisor import Supervisor
from engine.run.walk import Walk
from tests.engine.run.test_folder import make_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", student_batch=4, gradient_accumulation=2)


def phase_that_ends_with(run: Run, monkeypatch: pytest.MonkeyPatch, codes: list[int], kills: list[int | None]) -> Walk:
    """A walk whose phases end with these codes; and what the kernel says it has killed, each time it is asked."""
    events = EventWriter(run.events_path)
    ends, counts = iter(codes), iter(kills)

    def ends_with(job: Job) -> Ending:
        code = next(ends)
        if code == 0:
            run.finish_phase(job.name, {})
        return Ending(code)

    monkeypatch.setattr(hardware, "killed_for_memory", lambda: next(counts))
    return Walk(run, events, RunControl(run.control_path, events), ends_with)


def told(run: Run, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.events_path) if event["kind"] == kind]


def test_a_killed_phase_continues_with_the_same_settings(run, monkeypatch):
    walk = phase_that_ends_with(run, monkeypatch, [-9, -9, 0], [3, 3, 3, 3, 3])
    walk.do("student")
    assert Run.open(run.path).settings.student_batch == 4
    assert [event["code"] for event in told(run, "log")] == ["killed", "killed"]
    assert told(run, "back_off") == []


@pytest.mark.parametrize("kills", [[3, 4, 4], [None, 4, 4]])
def test_a_phase_that_the_kernel_killed_for_its_memory_gets_smaller_settings(run, monkeypatch, kills):
    # Where the kernel does not tell, lack of memory is the likelier reason.
    walk = phase_that_ends_with(run, monkeypatch, [-9, 0], kills)
    walk.do("student")
    settings = Run.open(run.path).settings
    assert (settings.student_batch, settings.gradient_accumulation) == (2, 4)
    assert len(told(run, "back_off")) == 2


def test_kills_without_end_are_taken_for_lack_of_memory(run, monkeypatch):
    walk = phase_that_ends_with(run, monkeypatch, [-9, -9, -9, -9, 0], [3] * 20)
    walk.do("student")
    assert Run.open(run.path).settings.student_batch == 2


def test_memory_that_lacks_with_the_smallest_settings_ends_the_run(run, monkeypatch):
    walk = phase_that_ends_with(run, monkeypatch, [EXIT_OUT_OF_MEMORY] * 9, [3] * 20)
    with pytest.raises(OutOfMemory, match="smallest possible settings"):
        walk.do("student")


@pytest.mark.parametrize(("limit", "told_as"), [(None, "Close other programs"), (3 * 2**29, "1.5 GiB of addresses")])
def test_a_limit_of_addresses_is_told_where_memory_may_be_free(run, monkeypatch, limit, told_as):
    monkeypatch.setattr("engine.run.walk.limit_of_a_process", lambda: limit)
    walk = phase_that_ends_with(run, monkeypatch, [EXIT_OUT_OF_MEMORY] * 9, [3] * 20)
    with pytest.raises(OutOfMemory) as caught:
        walk.do("student")
    assert told_as in caught.value.paragraph()
    assert ("ulimit -v" in caught.value.paragraph()) == (limit is not None)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("Error out of memory at line 380 in file /src/csrc/ops.cu", 1),  # bitsandbytes, on a GPU
        ("memory allocation of 1073741824 bytes failed", -signal.SIGABRT),  # Rust
    ],
)
def test_c_code_that_ends_the_process_for_lack_of_memory_gets_smaller_settings(run, monkeypatch, words, code):
    walk = phase_that_says(run, monkeypatch, iter([words, ""]), code)
    walk.do("student")
    assert Run.open(run.path).settings.student_batch == 2
    assert {event["reason"] for event in told(run, "back_off")} == {"out of memory"}


def test_an_end_without_a_word_of_memory_is_no_lack_of_it(run, monkeypatch):
    run.log_path.write_text("an earlier phase: CUDA out of memory\n")
    walk = phase_that_says(run, monkeypatch, iter(["Segmentation fault"]), 1)
    with pytest.raises(PhaseDied, match="exit code 1"):
        walk.do("student")


def phase_that_says(run: Run, monkeypatch: pytest.MonkeyPatch, words: Iterator[str], code: int) -> Walk:
    """A walk whose phases are real processes that write these words and end with the code, and at last with 0."""
    events = EventWriter(run.events_path)
    control = RunControl(run.control_path, events)
    own = subprocess.Popen

    def popen(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        said = next(words)
        if not said:
            run.finish_phase("student", {})
        end = f"kill -{-code} $$" if code < 0 else f"exit {code}"
        return own(["sh", "-c", f"echo '{said}' >&2; {end if said else 'exit 0'}"], **how)

    monkeypatch.setattr(subprocess, "Popen", popen)
    return Walk(run, events, control, PhaseWatch(run, events, control, PhaseStarter(run, events, control)).run_job)


@pytest.mark.parametrize(("budget", "times"), [(4_096, 1), (2**40, 0)])
def test_a_phase_that_takes_more_than_its_budget_is_told_at_once_and_once(run, monkeypatch, budget, times):
    run.change({"memory_budget": budget})
    walk = phase_that_says(run, monkeypatch, iter([""]), 0)
    monkeypatch.setattr(process_memory, "memory_of_tree", lambda pid: 8_192)
    walk.do("student")
    found = [event for event in told(run, "log") if event["code"] == "over-budget"]
    assert len(found) == times
    assert all("8.0 KiB, more than its budget of 4.0 KiB" in event["message"] for event in found)


def test_a_phase_that_has_ended_tells_what_it_spent(run, monkeypatch):
    walk = phase_that_says(run, monkeypatch, iter([""]), 0)
    walk.do("student")
    (finished,) = told(run, "phase_finished")
    assert finished["minor_faults"] > 0
    assert 0 <= finished["user_seconds"] < finished["seconds"] + 1
    assert 0 <= finished["system_seconds"] < finished["seconds"] + 1


def test_smaller_chunks_of_the_head_are_told_and_kept_in_the_run(tmp_path, monkeypatch):
    from tests.tiny import tiny_model

    run = make_run(tmp_path / "run", teacher=str(tiny_model("llama")), teacher_batch=1, device="cpu")
    walk = phase_that_ends_with(run, monkeypatch, [EXIT_OUT_OF_MEMORY] * 3 + [0], [3] * 20)
    walk.do("teacher")
    assert [event["field"] for event in told(run, "back_off")] == ["layer_by_layer", "cpu_offload", "head_chunk_tokens"]
    job = Run.open(run.path).job("teacher")
    assert isinstance(job, ScoreJob)
    assert job.head_chunk_tokens == told(run, "back_off")[-1]["to"] == 64


def test_control_lines_of_any_kind_are_answered_and_do_no_harm(run):
    control = RunControl(run.control_path, EventWriter(run.events_path))
    run.control_path.write_bytes(
        b'{"kind": "control", "command": "explode"}\n[]\nnonsense\n\xff\xfe\n{"kind": "control"}\n'
        b'{"kind": "control", "command": ["stop"]}\n{"kind": "control", "command": null, "by": {"a": 1}}\n'
        b'{"kind": "control", "command": "sto'
    )
    control.look()
    answers = told(run, "control")
    assert [answer["accepted"] for answer in answers] == [False] * 4
    assert not control.stopping


PHASE = """
import sys, torch
from engine.phases import process as phase
from engine.errors import ModelError, TokensDamaged
def fail(run, job, channel):
    try:
        raise {first}
    except Exception as error:
        raise {then}
phase._body = lambda job: fail
sys.exit(phase.main(["student", sys.argv[1], str(__import__("os").getppid())]))
"""


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("torch.OutOfMemoryError('CUDA out of memory')", "error"),
        pytest.param("RuntimeError('CUDA error: CUBLAS_STATUS_NOT_INITIALIZED')", "error", marks=pytest.mark.slow),
        pytest.param("MemoryError()", "ModelError('It cannot be loaded.') from error", marks=pytest.mark.slow),
        ("OSError(12, 'Cannot allocate memory')", "TokensDamaged('It is damaged.') from error"),
    ],
)
def test_a_phase_tells_the_supervisor_of_every_lack_of_memory(run, first, then):
    words = [sys.executable, "-c", PHASE.format(first=first, then=then), str(run.path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == EXIT_OUT_OF_MEMORY, done.stderr
    assert [event["code"] for event in told(run, "log")] == ["out-of-memory"]
    assert told(run, "error") == []


BUSY = """
import sys, time
from engine.phases import process as phase
phase._ORPHAN_SECONDS = 0.5
phase._body = lambda job: lambda run, job, channel: time.sleep(600)
phase.main(["prepare", sys.argv[1], sys.argv[2]])
"""
SUPERVISOR = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1], str(os.getpid())])
print(child.pid, flush=True)
child.wait()
"""


def test_a_phase_whose_supervisor_is_killed_is_gone_within_seconds_however_busy_it_is(run):
    command = [sys.executable, "-c", SUPERVISOR, str(run.path), BUSY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        phase = int(parent.stdout.readline())
        deadline = time.monotonic() + 120
        while not run.events_path.exists() and time.monotonic() < deadline:  # it is at work
            time.sleep(0.02)
        parent.kill()
    while lives(phase) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(phase)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_phase_that_was_left_behind_keeps_the_run_and_the_next_supervisor_waits_for_it(run):
    # The supervisor takes the lock, starts a phase that inherits it, and is killed; the phase takes half a second more.
    holder = (
        "import os, subprocess, sys\nfrom pathlib import Path\nfrom engine.run.folder import Run\n"
        "with Run.open(Path(sys.argv[1])).lock() as lock:\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(0.7)'], pass_fds=(lock,))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", holder, str(run.path)])
    assert done.returncode == -signal.SIGKILL
    assert run.is_live()
    with run.lock():
        assert run.lock_path.read_text().split() == [str(os.getpid())]


def test_the_kernels_count_of_kills_for_memory(tmp_path):
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 7\n")
    assert hardware.killed_for_memory(tmp_path / "vmstat") == 7
    assert hardware.killed_for_memory(tmp_path / "nothing") is None


def test_a_phase_counts_gpus_as_the_plan_does(run: Run) -> None:
    assert environment_for(run.job("teacher"))["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_phase_sees_the_gpu_of_the_plan_alone(tmp_path, monkeypatch):
    gpus = tuple(hardware.Gpu(n, "RTX", 2**32, 2**31, "580", "8.6", uuid=f"GPU-{n}") for n in range(2))
    monkeypatch.setattr(gpu_check, "find_gpus", lambda: (gpus, ""))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run = make_run(tmp_path / "run", device="cuda:1")
    assert environment_for(run.job("teacher"))["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert environment_for(run.job("teacher"))["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")  # the user's own choice
    assert "PYTORCH_ALLOC_CONF" not in environment_for(run.job("teacher"))
    monkeypatch.setattr(gpu_check, "find_gpus", lambda: ((replace(gpus[0], uuid="cuda:0"),), ""))
    assert "CUDA_VISIBLE_DEVICES" not in environment_for(make_run(tmp_path / "other", device="cuda:0").job("teacher"))


def test_a_teacher_that_overflows_in_the_planners_fp16_begins_again_in_fp32(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", precision="fp16")
    run.cache_path.mkdir()
    (run.cache_path / "manifest.json").write_text("{}")
    error, events = BadNumbers("NaN", "", ""), EventWriter(run.events_path)
    assert phase_module._say(error, run.job("teacher"), run, events) == EXIT_OVERFLOWED
    walk = phase_that_ends_with(run, monkeypatch, [EXIT_OVERFLOWED, 0], [3, 3, 3])
    walk.do("teacher")
    assert Run.open(run.path).settings.precision == "fp32"
    assert not run.cache_path.exists(), "its records are of another format"
    (change,) = told(run, "back_off")
    assert (change["field"], change["to"]) == ("precision", "fp32")


@pytest.mark.parametrize(
    ("phase", "precision", "asked"), [("teacher", "fp16", True), ("teacher", "fp32", False), ("student", "fp16", False)]
)
def test_numbers_that_are_bad_in_a_format_that_stays_end_the_run(tmp_path, phase, precision, asked):
    run = make_run(tmp_path / "run", precision=precision)
    if asked:
        run.info["asked"]["precision"] = precision
    error = BadNumbers("NaN", "", "")
    assert phase_module._say(error, run.job(phase), run, EventWriter(run.events_path)) == BadNumbers.exit_code


@pytest.mark.parametrize("failure", [FileNotFoundError(2, "No such file"), PhaseDied("It ended.", "", "Continue.")])
@pytest.mark.parametrize("remains", [(), ("cache",)])
def test_a_folder_that_vanishes_is_no_defect(tmp_path, monkeypatch, failure, remains):
    run = make_run(tmp_path / "run")

    def go(walk: Walk) -> None:
        run.path.rename(tmp_path / "elsewhere")
        for name in remains:  # rm -r has not come to it, or a process was faster
            (run.path / name).mkdir(parents=True)
        raise failure

    monkeypatch.setattr(Walk, "go", go)
    monkeypatch.setattr(PhaseStarter, "preload", lambda *_: None)
    assert Supervisor(run).supervise() == 4
    (error,) = [event for event in read_events(tmp_path / "elsewhere/events.jsonl") if event["kind"] == "error"]
    assert error["what"] == f"The run's folder {run.path} is gone."
    assert "Put it back" in error["todo"]


def test_phase_whose_folder_vanishes_is_ended(run, monkeypatch):
    child = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(PhaseStarter, "_process", lambda *_: Started(child))
    events = EventWriter(run.events_path)
    control = RunControl(run.control_path, events)
    watch = PhaseWatch(run, events, control, PhaseStarter(run, events, control))
    with run.log_path.open("ab") as log:
        run.path.rename(run.path.with_name("elsewhere"))
        with pytest.raises(FolderGone, match="is gone"):
            watch._run_crew(run.job("teacher"), [ALONE], log)
    assert child.poll() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("phase", "device", "budget"),
    [("prepare", "cuda:0", 7), ("teacher", "cuda:0", 5), ("student", "cuda:0", 5), ("teacher", "cpu", 5)],
)
def test_memory_of_a_gpu_is_told_beside_its_budget(tmp_path, monkeypatch, phase, device, budget):
    run = make_run(tmp_path / "run", device=device, memory_budget=5 * 2**30, ram_budget=7 * 2**30)
    monkeypatch.setattr(PhaseStarter, "_process", lambda *_: Started(subprocess.Popen(["sleep", "0.3"])))
    monkeypatch.setattr(process_memory, "device_bytes", lambda _: 3 * 2**30)
    run.finish_phase(phase, {"device_peak_bytes": 4 * 2**30})
    events = EventWriter(run.events_path)
    control = RunControl(run.control_path, events)
    PhaseWatch(run, events, control, PhaseStarter(run, events, control)).run_job(run.job(phase))
    memory, (finished,) = told(run, "memory"), told(run, "phase_finished")
    is_there = phase != "prepare" and device != "cpu"
    assert {event["budget_bytes"] for event in memory} == {budget * 2**30}
    assert [budgeted(event) == 3 * 2**30 for event in memory[:1]] == [is_there]
    assert (budgeted(finished, "peak_bytes") == 4 * 2**30) == is_there


def test_a_model_that_is_gone_after_the_preparation_fails_the_run(run):
    error, events = ModelError("It has no weights.", "", "Download it."), run.event_writer("student")
    assert phase_module._say(error, run.job("student"), run, events) == ModelError.exit_code
    run.finish_phase("prepare", {})
    assert phase_module._say(error, run.job("student"), run, events) == RunFailed.exit_code


def test_a_full_disk_takes_what_ended_the_run(run, monkeypatch):
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if run.lock_path.stat().st_size > 4096:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    with run.lock():
        events = run.event_writer("student")
        monkeypatch.setattr(os, "write", full)
        events.log("info", "lost")
        events.write("error", what="The disk is full.", why="", todo="")
        events.write("run_finished", status="failed", exit_code=4)
        monkeypatch.undo()
        assert [event["kind"] for event in read_events(run.events_path)] == ["error", "run_finished"]
        assert "The disk is full." in run.log_path.read_text()
        assert run.lock_path.read_text().split() == [str(os.getpid())]
