"""Whole runs on systems as people have them: no locks, no mapping, a quota, few open files, no home, odd terminals."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end import program
from tests.faulty_system import faulty
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow


def words(folder: Path, **given: object) -> list[object]:
    """A small run into ``folder/run``."""
    flags: dict[str, object] = {
        "teacher": tiny_model("llama"),
        "student": tiny_model("llama", num_layers=2, seed=1),
        "data": program.write_texts(folder),
        "output_dir": folder / "run",
        "samples": 20,
        "steps": 2,
        "device": "cpu",
    } | given
    pairs = [(f"--{name}", value) for name, value in flags.items() if value is not None]
    return [*(word for pair in pairs for word in pair), *program.QUICK]


def ends_well(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "run/student/model.safetensors").is_file()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_run_continues_without_locks_and_says_so(number, tmp_path):
    environment = faulty(FLOCK=number)
    done = program.run(*words(tmp_path, cache_dir=tmp_path / "records"), "--plain", **environment)
    ends_well(done, tmp_path)
    assert "has no locks" in done.stdout
    assert not list(tmp_path.rglob("*.holder")), "who held it is gone"
    again = program.run("--resume", "--output_dir", tmp_path / "run", "--steps", 3, **environment)
    ends_well(again, tmp_path)


def test_two_at_once_are_kept_apart_without_locks(tmp_path):
    environment = faulty(FLOCK=errno.ENOLCK)
    with program.start(*words(tmp_path, steps=3000), **environment) as first:
        wait_for(lambda: (tmp_path / "run/lock.holder").exists())
        second = program.run("--resume", "--output_dir", tmp_path / "run", **environment)
        first.send_signal(signal.SIGTERM)
    assert second.returncode == 2, second.stderr
    assert "is already running" in second.stderr


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_folder_that_cannot_be_flushed_does_not_end_a_run(number, tmp_path):
    ends_well(program.run(*words(tmp_path), **faulty(FOLDER_SYNC=number)), tmp_path)


@pytest.mark.parametrize("streamed", [(), ("--layer_by_layer",)])
def test_models_and_the_run_may_lie_where_nothing_can_be_mapped(streamed, tmp_path):
    folder = tmp_path / "shared"
    for name, model in (("T", tiny_model("llama")), ("S", tiny_model("llama", num_layers=2, seed=1))):
        shutil.copytree(model, folder / name)
    given = words(tmp_path, teacher=folder / "T", student=folder / "S", output_dir=folder / "run")
    ends_well(program.run(*given, *streamed, **faulty(MAP=folder)), folder)


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.EDQUOT, "quota"), (errno.ENOSPC, "full"), (errno.EFBIG, "large"), (errno.EROFS, "read-only"),
     (errno.EIO, "input/output error")],
)  # fmt: skip
@pytest.mark.parametrize("when", ["tokens.h5", "phases/teacher.json"])
def test_a_disk_that_takes_no_word_any_more_still_has_its_reason_told(number, word, when, tmp_path):
    environment = faulty(WRITE=tmp_path / "run", ERRNO=number, WHEN=tmp_path / "run" / when)
    done = program.run(*words(tmp_path), "--plain", **environment)
    assert done.returncode == 4, done.stderr
    assert word in done.stderr
    assert "no word" not in done.stderr
    assert "--resume" in done.stderr
    ends_well(program.run("--resume", "--output_dir", tmp_path / "run"), tmp_path)


def test_a_limit_on_the_size_of_files_is_told_as_one(tmp_path):
    limit = 40_000
    done = subprocess.run(
        [sys.executable, "-m", "engine", *map(str, words(tmp_path))], capture_output=True, text=True, cwd=program.ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "may not become that large" in done.stderr


@pytest.mark.parametrize("streamed", [(), ("--layer_by_layer",)])
def test_a_model_of_more_shards_than_files_may_be_open(streamed, tmp_path):
    teacher = tiny_model("llama", num_layers=40, shard_bytes=400)
    assert len(list(teacher.glob("*.safetensors"))) > 256
    given = words(tmp_path, teacher=teacher, student="from-teacher", student_layers=2)
    done = subprocess.run(
        [sys.executable, "-m", "engine", *map(str, given), *streamed], capture_output=True, text=True, cwd=program.ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
    )  # fmt: skip
    ends_well(done, tmp_path)


@pytest.mark.parametrize("home", [None, "/sys/kernel", ""])
def test_a_user_without_a_usable_home_runs_with_explicit_folders_and_is_told_once(home, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_") and name != "HOME"}
    environment |= {} if home is None else {"HOME": home}
    is_root = os.geteuid() == 0
    if is_root:
        tmp_path.chmod(0o777)
        for folder in (*tmp_path.parents, Path(tiny_model("llama")).parent):
            if not os.stat(folder).st_mode & 0o005:
                pytest.skip("other users cannot reach temporary folders here")
    if not os.access(sys.executable, os.X_OK) or (is_root and not _others_can_run_python()):
        pytest.skip("other users cannot run this Python")
    done = subprocess.run(
        [sys.executable, "-m", "engine", *map(str, words(tmp_path, until="teacher")), "--plain"], capture_output=True,
        text=True, cwd=program.ROOT, env=environment, user=54_321 if is_root else None,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("are not kept") == 1, done.stderr


def _others_can_run_python() -> bool:
    program_text = "import torch, transformers, h5py, engine"
    done = subprocess.run([sys.executable, "-c", program_text], user=54_321, cwd=program.ROOT, capture_output=True)
    return done.returncode == 0


@pytest.mark.parametrize(
    ("number", "to_all"),
    [(signal.SIGHUP, False), (signal.SIGHUP, True), (signal.SIGUSR1, False), (signal.SIGUSR1, True),
     (signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGQUIT, True), (signal.SIGXCPU, False),
     (signal.SIGALRM, True)],
)  # fmt: skip
def test_every_signal_that_asks_to_end_stops_in_order_and_says_so(number, to_all, tmp_path):
    before = signal.signal(number, signal.SIG_DFL)  # the tests' own parent may ignore it, as nohup does
    try:
        started = program.start(*words(tmp_path, steps=3000), "--plain")
    finally:
        signal.signal(number, before)
    run = tmp_path / "run"
    wait_for(lambda: any(event["kind"] == "metric" for event in events(run)))
    if to_all:
        told = [event["pid"] for event in events(run) if event["kind"] == "run_started"]
        for pid in (*_children(told[0]), told[0]):
            os.kill(pid, number)
    started.send_signal(number)
    _, said = started.communicate(timeout=120)
    assert started.returncode == 130, said
    assert "Stopped. Completed work is kept. Continue: tiny-distill --resume" in said
    assert list((run / "checkpoints").iterdir()), "a step back would be lost work"
    last = (run / "run.log").read_text().strip().splitlines()[-1]
    assert "run finished" in last


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"},
     {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)  # fmt: skip
def test_a_terminal_of_few_signs_gets_plain_ones(environment, tmp_path):
    encoding = environment.get("PYTHONIOENCODING", "ascii")
    plan = program.run(*words(tmp_path), "--dry_run", encoding=encoding, **environment)
    assert plan.returncode == 0, plan.stderr
    assert "+/-" in plan.stdout or "±" in plan.stdout
    done = program.run(*words(tmp_path), encoding=encoding, **environment)
    ends_well(done, tmp_path)


@pytest.mark.parametrize("num_read", [0, 1])
@pytest.mark.parametrize("flags", [["--help"], ["--dry_run"], ["--plain"]])
def test_a_reader_that_goes_early_is_no_failure(flags, num_read, tmp_path):
    reading, writing = os.pipe()
    started = subprocess.Popen(
        [sys.executable, "-m", "engine", *map(str, words(tmp_path)), *flags], stdout=writing, stderr=subprocess.PIPE,
        text=True, cwd=program.ROOT,
    )  # fmt: skip
    os.close(writing)
    os.read(reading, num_read)
    os.close(reading)
    _, said = started.communicate(timeout=300)
    assert started.returncode == 0, said
    assert "Exception" not in said
    if flags == ["--plain"]:
        assert (tmp_path / "run/student/model.safetensors").is_file(), "the run continues without its reader"


def events(run: Path) -> list[dict[str, object]]:
    from engine.channel.events import read_events

    return list(read_events(run / "events.jsonl"))


def wait_for(condition, seconds: float = 200) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_a_moved_project_continues_and_needs_no_teacher_once_its_records_are_there(tmp_path):
    project = tmp_path / "before"
    project.mkdir()
    shutil.copytree(tiny_model("llama"), project / "T")
    shutil.copytree(tiny_model("llama", num_layers=2, seed=1), project / "S")
    done = program.run(*words(project, teacher=project / "T", student=project / "S", until="teacher"))
    assert done.returncode == 0, done.stderr
    moved_to = tmp_path / "after"
    project.rename(moved_to)
    shutil.copytree(moved_to / "S", tmp_path / "other")
    given = "--resume", "--output_dir", moved_to / "run"
    other = program.run(*given, "--teacher", tmp_path / "other")
    assert other.returncode == 2, "another teacher is refused"
    assert "teacher" in other.stderr
    same = program.run(*given, "--teacher", moved_to / "T", "--until", "teacher")
    assert same.returncode == 0, same.stderr
    shutil.rmtree(moved_to / "T")
    (moved_to / "texts.jsonl").unlink()
    ends_well(program.run(*given), moved_to)
