"""Whole runs on several processes: started by --processes, by torchrun, and by hand with a share each."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from engine.cache.identity import read_manifest
from engine.cache.record import Records
from engine.cache.store import CacheStore, caches_below
from engine.channel.channel import Channel
from engine.channel.events import EventWriter
from engine.data.tokens import SPLITS, TokenFile
from engine.phases import student
from engine.ranks import LIMIT, Rank, all_ranks, environment_of
from engine.run.folder import Run
from tests.end_to_end import program
from tests.end_to_end.test_preloaded import commands_of_phases
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow

STREAMED = ["--student_quantization", "nf4", "--student_layer_by_layer"]


def words(folder: Path, name: str, **changes: object) -> list[object]:
    """A small run in ``folder/name`` whose settings do not depend on the number of processes."""
    texts = folder / "texts.jsonl"
    if not texts.exists():
        program.write_texts(folder, 100)
    found = {
        "teacher": tiny_model("llama"), "student": tiny_model("llama", num_layers=2, seed=1), "data": texts,
        "output_dir": folder / name, "device": "cpu", "precision": "fp32", "threads": 1, "sequence_length": 32,
        "teacher_batch": 1, "student_batch": 4, "gradient_accumulation": 2, "steps": 20, "optimizer": "adamw",
        "memory_budget": "3GB", "checkpoint_every": 5,
    } | changes  # fmt: skip
    given = {f"--{flag}": value for flag, value in found.items() if value is not None}
    return [word for flag, value in given.items() for word in ([flag] if value is True else [flag, value])]


def records(run: Path, cache: Path | None = None) -> dict[str, Records]:
    """Every record of a run's rows."""
    folder = next(iter(caches_below(cache or run / "cache")))
    identity = read_manifest(folder)
    assert identity is not None
    with TokenFile(run / "tokens.h5") as tokens, CacheStore.open(folder, identity, writable=False) as store:
        return {split: store.fetch(tokens.hashes(split)) for split in SPLITS}


def assert_same_records(one: dict[str, Records], other: dict[str, Records]) -> None:
    for split in SPLITS:
        for name, value in vars(one[split]).items():
            assert np.array_equal(value, vars(other[split])[name]), f"{name} of {split}"


def assert_same_student(one: Path, other: Path) -> None:
    assert_same_tensors(*(run / "student" / "model.safetensors" for run in (one, other)))


def assert_same_tensors(one: Path, other: Path) -> None:
    ours, theirs = load_file(one), load_file(other)
    for name, tensor in ours.items():
        assert np.linalg.norm(tensor - theirs[name]) <= 1e-5 * np.linalg.norm(tensor), name


@pytest.fixture(scope="module")
def one(tmp_path_factory, measured_cache: Path) -> Path:
    """A finished run on one process, and its text beside it."""
    folder = tmp_path_factory.mktemp("ranks")
    done = program.run(*words(folder, "one"), XDG_CACHE_HOME=str(measured_cache))
    assert done.returncode == 0, done.stderr
    return folder / "one"


def test_two_processes_leave_the_records_and_the_student_of_one(one: Path) -> None:
    done = program.run(*words(one.parent, "two", processes=2))
    assert done.returncode == 0, done.stderr
    two = one.parent / "two"
    assert_same_records(records(one), records(two))
    assert_same_student(one, two)
    report = json.loads((two / "report.json").read_text())
    assert report["world"] == {"ranks": 2, "hosts": 1}
    assert json.loads((one / "report.json").read_text())["world"] == {"ranks": 1, "hosts": 1}
    told = [event["ranks"] for event in program.events(two) if event["kind"] == "memory" and "ranks" in event]
    assert {entry["rank"] for ranks in told for entry in ranks} == {0, 1}
    assert len(list((two / "cache").glob("rank-0000[01]-*.jsonl"))) == 2


def test_ranks_that_divide_the_student_leave_the_same_student(one: Path) -> None:
    arguments = words(one.parent, "divided", processes=2, cache_dir=one / "cache")
    done = program.run(*arguments, "--student_sharded")
    assert done.returncode == 0, done.stderr
    divided = one.parent / "divided"
    assert_same_student(one, divided)
    reports = [json.loads((run / "report.json").read_text()) for run in (one, divided)]
    # With records that are there already the teacher is not loaded, and writes no samples.
    texts = [[(each["prompt"], each["before"], each["after"]) for each in report["samples"]] for report in reports]
    assert texts[1] == texts[0]
    assert reports[1]["student_after"]["holdout_loss"] == pytest.approx(reports[0]["student_after"]["holdout_loss"])
    (choice,) = [
        choice
        for event in program.events(divided)
        if event["kind"] == "plan"
        for choice in event["choices"]
        if choice["field"] == "student_sharded"
    ]
    assert choice["value"] is True


ADAPTERS: dict[str, dict[str, object]] = {
    "in memory": {"lora_rank": 4},
    "streamed in nf4": {"lora_rank": 4, "student_quantization": "nf4", "student_layer_by_layer": True},
    "cut from the teacher, in files": {
        "lora_rank": 4, "student": "from-teacher", "student_layers": 2, "cpu_offload": True, "compare": "labels",
    },
    "of its own teacher": {"lora_rank": 4, "student": "its teacher", "optimizer": "adamw-8bit"},
}  # fmt: skip


@pytest.mark.parametrize("way", ADAPTERS)
def test_two_processes_train_the_adapter_of_one_and_go_on_with_other_numbers(one: Path, way: str) -> None:
    runs = {count: one.parent / f"adapter {way} {count}" for count in (1, 2)}
    own = {"student": tiny_model("llama")} if ADAPTERS[way].get("student") == "its teacher" else {}
    for count, run in runs.items():
        asked = {**ADAPTERS[way], **own, "cache_dir": one / "cache", "processes": count}
        done = program.run(*words(one.parent, run.name, **asked))
        assert done.returncode == 0, done.stderr
    for name in ("student/model.safetensors", "student/adapter/adapter_model.safetensors"):
        assert_same_tensors(*(run / name for run in runs.values()))
    reports = {count: json.loads((run / "report.json").read_text()) for count, run in runs.items()}
    assert reports[2]["world"] == {"ranks": 2, "hosts": 1}
    assert reports[2]["adapter"] == reports[1]["adapter"]
    for model in ("student_before", "student_after"):
        assert reports[2][model]["holdout_loss"] == pytest.approx(reports[1][model]["holdout_loss"])
    if "compare" in ADAPTERS[way]:
        losses = [report["compare"]["labels"]["holdout_loss"] for report in reports.values()]
        assert losses[1] == pytest.approx(losses[0])
    for steps, processes in ((30, 1), (40, 2)):
        for count, run in runs.items():
            changes = ["--steps", steps, "--processes", processes if count == 2 else 1]
            resumed = program.run("--resume", "--output_dir", run, *changes)
            assert resumed.returncode == 0, resumed.stderr
    assert_same_tensors(*(run / "student" / "model.safetensors" for run in runs.values()))


def test_an_adapter_is_not_divided_not_even_later(one: Path) -> None:
    asked = words(one.parent, "undivided", cache_dir=one / "cache", lora_rank=4, steps=5)
    refused = program.run(*asked, "--processes", 2, "--student_sharded")
    assert refused.returncode == 2
    assert "an adapter is small" in refused.stderr
    assert not (one.parent / "undivided").exists()
    assert program.run(*asked).returncode == 0
    resumed = program.run("--resume", "--output_dir", one.parent / "undivided", "--processes", 2, "--student_sharded")
    assert resumed.returncode == 2
    assert "an adapter is small" in resumed.stderr


def test_a_rank_that_is_killed_while_scoring_loses_its_wave_alone(one: Path) -> None:
    run = one.parent / "killed"
    arguments = words(one.parent, "killed", processes=2, until="teacher")
    with program.start(*arguments) as started:
        pid = wait_for(lambda: rank_process(run, "teacher", 1))
        os.kill(pid, signal.SIGKILL)
        _, errors = started.communicate(timeout=400)
    assert started.returncode == 0, errors
    assert [event.get("code") for event in program.events(run) if event["kind"] == "log"].count("rank-killed") == 1
    assert_same_records(records(one), records(run))


def test_a_comparison_begins_however_long_the_student_is_written_before_it(one: Path, monkeypatch) -> None:
    asked = {"steps": 2, "evaluations": 1, "compare": "labels", "cache_dir": one / "cache", "processes": 2}
    done = program.run(*words(one.parent, "compared", until="teacher", **asked))
    assert done.returncode == 0, done.stderr
    run = Run.open(one.parent / "compared")
    plain = student.write_student

    def slowly(*parts: Any) -> None:
        time.sleep(15)
        plain(*parts)

    def work(rank: Rank, meeting: Path) -> None:
        own = environment_of(rank, os.environ, local_world=2, meeting=f"file://{meeting}")
        os.environ.update(own | {LIMIT: "10"})
        student.run_student(run, run.job("student"), Channel(EventWriter(run.events_path, phase="student")))

    monkeypatch.setattr(student, "write_student", slowly)
    pids = [forked(functools.partial(work, rank, one.parent / "meeting")) for rank in all_ranks(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    assert run.result("student")["compare"]["labels"]["tokens"]


def forked(work: Callable[[], None]) -> int:
    """Do some work in a copy of this process; returns its number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node")
WAYS = {"whole": ["--no_student_sharded"], "divided": ["--student_sharded"], "adapter": ["--lora_rank", 4, *STREAMED]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])  # it is gone, or answers no more
def test_a_rank_that_is_lost_in_the_training_loses_nothing(one: Path, number: int, way: str) -> None:
    name = f"lost-{number}-{way}"
    run = one.parent / name
    # Busy cores may leave a rank without an answer for seconds.
    environment = {"TINYDISTILL_RANK_SECONDS": "20"} if number == signal.SIGSTOP else {}
    steps = {"steps": 60, "checkpoint_every": 10} if way == "adapter" else {"steps": 150, "checkpoint_every": 30}
    arguments = words(one.parent, name, processes=2, cache_dir=one / "cache", **steps)
    with program.start(*arguments, *WAYS[way], **environment) as started:
        wait_for(lambda: list(run.glob("checkpoints/step-*")))
        pid = rank_process(run, "student", 1)
        assert pid, "the training is over already"
        os.kill(pid, number)
        _, errors = started.communicate(timeout=400)
    if number == signal.SIGKILL:  # it begins again by itself
        assert started.returncode == 0, errors
        if way == "adapter":
            alone = program.run(*words(one.parent, f"{name}-alone", cache_dir=one / "cache", **steps), *WAYS[way])
            assert alone.returncode == 0, alone.stderr
            assert_same_student(one.parent / f"{name}-alone", run)
        return
    assert started.returncode == 4
    assert "Rank 1 of the student phase did not answer" in errors
    resumed = program.run("--resume", "--output_dir", run, "--processes", 1)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((run / "report.json").read_text())["world"] == {"ranks": 1, "hosts": 1}
    assert any(event.get("code") == "resumed-checkpoint" for event in program.events(run))


def test_torchrun_starts_the_ranks_of_one_run_and_all_end_alike(one: Path) -> None:
    done = torchrun(2, *words(one.parent, "launched"))
    assert done.returncode == 0, done.stderr
    run = one.parent / "launched"
    assert_same_records(records(one), records(run))
    assert_same_student(one, run)
    wrong = torchrun(2, *words(one.parent, "no-folder", output_dir=None))
    assert wrong.returncode != 0
    assert "Add --output_dir FOLDER" in wrong.stderr


def test_ctrl_c_under_torchrun_ends_all_ranks_in_order(one: Path) -> None:
    run = one.parent / "interrupted"
    asked = {"cache_dir": one / "cache", "steps": 4000, "checkpoint_every": 20}
    words_of_it = [sys.executable, *TORCHRUN, "2", "-m", "engine", *words(one.parent, run.name, **asked)]
    with subprocess.Popen(list(map(str, words_of_it)), cwd=program.ROOT, stderr=subprocess.PIPE, text=True) as launcher:
        wait_for(lambda: list(run.glob("checkpoints/step-*")))
        launcher.send_signal(signal.SIGINT)
        _, errors = launcher.communicate(timeout=400)
    assert "forcefully exiting" not in errors
    last = program.events(run)[-1]
    assert (last["kind"], last["status"], last["exit_code"]) == ("run_finished", "stopped", 130)
    assert not list(commands_of_phases(run))
    done = max(int(path.name.rpartition("-")[2]) for path in run.glob("checkpoints/step-*"))
    resumed = program.run("--resume", "--output_dir", run, "--processes", 3, "--steps", done + 5)
    assert resumed.returncode == 0, resumed.stderr
    assert any(event.get("code") == "resumed-checkpoint" for event in program.events(run))


def test_shares_by_hand_fill_one_cache_and_a_later_run_has_nothing_to_score(one: Path) -> None:
    cache = one.parent / "shared"
    for number in range(2):
        done = program.run(
            *words(one.parent, f"share-{number}", until="teacher", cache_dir=cache), RANK=str(number), WORLD_SIZE="2"
        )
        assert done.returncode == 0, done.stderr
        events = program.events(one.parent / f"share-{number}")
        assert any(f"share {number + 1} of 2" in event.get("message", "") for event in events)
    assert_same_records(records(one), records(one.parent / "share-1", cache))
    done = program.run("--resume", "--output_dir", one.parent / "share-0")
    assert done.returncode == 0, done.stderr
    assert any(event.get("code") == "cache-hit" for event in program.events(one.parent / "share-0"))
    assert_same_student(one, one.parent / "share-0")


def test_the_batch_script_of_a_slurm_job_scores_all_rows_and_a_task_of_srun_its_share(one: Path) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    for step, told in (({}, "it scores all rows"), ({"SLURM_STEP_ID": "0"}, "share 1 of 4")):
        cache = one.parent / f"slurm records {len(step)}"
        asked = words(one.parent, f"slurm {len(step)}", until="teacher", cache_dir=cache)
        done = program.run(*asked, **job, **step)
        assert done.returncode == 0, done.stderr
        assert told in done.stdout
        if not step:
            assert_same_records(records(one), records(one.parent / "slurm 0", cache))


def test_variables_of_a_rank_without_a_common_folder_are_refused(one: Path) -> None:
    done = program.run(*words(one.parent, "refused"), RANK="1", WORLD_SIZE="2")
    assert done.returncode == 2
    assert "--until teacher --cache_dir" in done.stderr
    assert not (one.parent / "refused").exists()


def torchrun(count: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *TORCHRUN, str(count), "-m", "engine"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, cwd=program.ROOT, timeout=400
    )


def wait_for(look: Callable[[], object], seconds: float = 200) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise TimeoutError


def rank_process(run: Path, phase: str, rank: int, world: int = 2) -> int:
    """The process of a rank, once all ranks are at work on a phase; 0 before. They are started in order."""
    found = sorted((started_at(pid), pid) for pid, name in commands_of_phases(run) if name == phase)
    return found[rank][1] if len(found) == world else 0


def started_at(pid: int) -> int:
    """When a process began, in ticks since the system did; see proc_pid_stat(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
