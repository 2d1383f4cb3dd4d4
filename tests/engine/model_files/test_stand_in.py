"""The folders that stand for models' files: bounded, whole, and never removed while a process has them in use."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.disk import places
from engine.errors import DiskFull
from engine.export import write_gguf
from engine.model_files import stand_in as stand_ins
from engine.model_files.hub import resolve_model
from engine.model_files.spec import read_spec
from engine.model_files.stand_in import SOURCE, source_of, stand_in, tidy
from tests.tiny import tiny_model

DAY = 86_400.0
# Makes a folder for a file in a process of its own; "in use" until a line comes on its standard input.
CHILD = """
import sys
from pathlib import Path
from engine.model_files.stand_in import stand_in

def make(folder):
    (folder / "config.json").write_text("{}")
    return {}

print(stand_in(sys.argv[2], "test", [Path(sys.argv[1])], make), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def home() -> Path:
    folder = places.cache() / "models"
    folder.mkdir(parents=True)
    return folder


def old_folder(home: Path, name: str, days: float, nbytes: int = 10) -> Path:
    """A folder that was used so many days ago, by no process of now."""
    folder = home / name
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(b"x" * nbytes)
    (folder / SOURCE).write_text('{"kind": "test", "files": {}}')
    os.utime(folder / SOURCE, (time.time() - days * DAY,) * 2)
    os.utime(folder, (time.time() - days * DAY,) * 2)
    return folder


def in_a_process(file: Path, name: str) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(file), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_that_was_not_used_for_a_month_is_removed(home: Path) -> None:
    old, young = old_folder(home, "old", 31), old_folder(home, "young", 29)
    tidy(home)
    assert not old.exists()
    assert young.exists()
    assert not list(home.glob(".*"))


def test_the_oldest_beyond_the_bound_are_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "_MOST_BYTES", 2_500)
    folders = [old_folder(home, f"folder-{age}", age, 1_000) for age in (3, 1, 4, 2)]
    tidy(home)
    assert sorted(folder.name for folder in folders if folder.exists()) == ["folder-1", "folder-2"]


def test_one_that_was_just_used_stays_however_large_all_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "_MOST_BYTES", 1)
    now = old_folder(home, "now", 0)
    tidy(home)
    assert now.exists()


def test_a_folder_in_use_is_never_removed(home: Path, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")
    process, folder = in_a_process(tmp_path / "model", "used")
    try:
        os.utime(folder / SOURCE, (time.time() - 99 * DAY,) * 2)
        tidy(home)
        assert (folder / SOURCE).is_file()
    finally:
        process.communicate("\n")
    tidy(home)
    assert not folder.exists(), "it is no longer in use"


def test_reading_what_a_folder_stands_for_keeps_it(home: Path) -> None:
    folder = old_folder(home, "read", 99)
    assert source_of(folder) is not None
    assert time.time() - (folder / SOURCE).stat().st_mtime < DAY, "it was used now"
    os.utime(folder / SOURCE, (time.time() - 99 * DAY,) * 2)
    tidy(home)
    assert folder.exists(), "this process has it in use"


def test_a_use_on_the_same_day_changes_nothing(home: Path) -> None:
    folder = old_folder(home, "read", 0.5)
    before = (folder / SOURCE).stat().st_mtime_ns
    source_of(folder)
    assert (folder / SOURCE).stat().st_mtime_ns == before


def test_leftovers_of_a_kill_go_and_what_is_being_made_stays(home: Path) -> None:
    for name, age in ((".model-0.abc", 7_200), (".model-1.def", 60), (".model-2.gone", 7_200)):
        (home / name).mkdir()
        (home / name / "tokenizer.json").write_text("{}")
        os.utime(home / name, (time.time() - age,) * 2)
    tidy(home)
    assert [entry.name for entry in home.iterdir()] == [".model-1.def"]


def test_temporary_places_of_killed_processes_go(tmp_path: Path) -> None:
    for name, days in (("tinydistill-models-old", 2), ("tinydistill-models-new", 0.1), ("another-program", 9)):
        (tmp_path / name).mkdir()
        old_folder(tmp_path / name, "model-0", days)
        os.utime(tmp_path / name, (time.time() - days * DAY,) * 2)
    held = tmp_path / "tinydistill-models-held"
    held.mkdir()
    source_of(old_folder(held, "model-1", 2))
    os.utime(held, (time.time() - 2 * DAY,) * 2)
    stand_ins._tidy_temporary_homes(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "another-program",
        "tinydistill-models-held",
        "tinydistill-models-new",
    ]


def test_making_a_folder_tidies_and_a_removed_one_is_made_again(home: Path, tmp_path: Path) -> None:
    old = old_folder(home, "old", 31)
    write_gguf(tiny_model("llama"), tmp_path / "model.gguf")
    folder = resolve_model(tmp_path / "model.gguf")
    assert not old.exists()
    config = (folder / "config.json").read_bytes()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert resolve_model(tmp_path / "model.gguf") == folder
    assert (folder / "config.json").read_bytes() == config
    assert read_spec(tmp_path / "model.gguf").num_layers == 4


def test_no_room_names_the_place_and_what_to_do(home: Path, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")

    def full(folder: Path) -> dict[str, Any]:
        (folder / "tokenizer.json").write_text("half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DiskFull) as caught:
        stand_in("big", "test", [tmp_path / "model"], full)
    said = caught.value.paragraph()
    assert str(home) in said
    assert "of big to" in said
    assert "Free some space, or set XDG_CACHE_HOME to a folder on another disk" in said
    assert list(home.iterdir()) == []
