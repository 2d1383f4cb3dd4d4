import fcntl
import json
import os
from pathlib import Path

from engine.disk.runs import announced, announced_runs
from engine.planner.live_runs import live_runs

GIB = 2**30


def _run(folder: Path, name: str, info: object) -> Path:
    run = folder / name
    run.mkdir(parents=True)
    (run / "lock").write_text(f"{os.getpid()}\n")
    (run / "run.json").write_text(json.dumps(info))
    return run


INFO = {
    "settings": {"device": "cpu"},
    "predicted": {"teacher": {"peak_bytes": GIB}, "student": {"peak_bytes": 50 * GIB}, "disk_bytes": 1},
}


def test_a_run_whose_lock_is_held_reserves_what_it_has_not_taken_yet(tmp_path: Path) -> None:
    run = _run(tmp_path, "notes", INFO)
    assert live_runs(tmp_path) == []
    with (run / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (found,) = live_runs(tmp_path)
    assert (found.name, found.device, found.device_reserved_bytes) == ("notes", "cpu", 0)
    assert 45 * GIB < found.reserved_bytes < 50 * GIB, "what this process has taken comes off"


def test_runs_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    broken = _run(tmp_path, "broken", ["nonsense"])
    (tmp_path / "file").write_text("")
    with (broken / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert live_runs(tmp_path) == []
    assert live_runs(tmp_path / "nowhere") == []


def test_a_run_in_any_folder_is_found_while_it_is_going(tmp_path: Path) -> None:
    elsewhere = _run(tmp_path / "elsewhere", "other", INFO)
    assert announced_runs() == []
    with (elsewhere / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with announced(elsewhere):
            assert [run.name for run in live_runs(tmp_path / "runs", announced_runs())] == ["other"]
    assert announced_runs() == []
    assert live_runs(tmp_path / "runs", [elsewhere, tmp_path / "gone"]) == []


def test_notes_of_runs_that_are_gone_are_removed(tmp_path: Path) -> None:
    with announced(tmp_path / "run"):
        assert announced_runs() == []
        assert list((Path(os.environ["XDG_STATE_HOME"]) / "tinydistill" / "going").iterdir()) == []
