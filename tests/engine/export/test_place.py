"""Where exports go: what is there is kept or replaced as a whole, and a disk that is full leaves no part of a model."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cli import export
from engine.errors import DiskFull, FolderError, SettingsError
from engine.model_files.spec import read_spec
from tests.tiny import tiny_model

FORMATS = ("hf", "gguf", "ollama")


def run(*words: object) -> None:
    assert export._main([str(word) for word in words]) == 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder of this test alone."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama", num_layers=2), folder)
    return folder


@pytest.fixture
def gguf(model: Path, tmp_path: Path) -> Path:
    file = tmp_path / "file.gguf"
    run(model, "--format", "gguf", "--out", file)
    return file


@contextlib.contextmanager
def small_files(most_bytes: int) -> Iterator[None]:
    """No file may become larger: the system's answer is that of a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("wanted", FORMATS)
@pytest.mark.parametrize("source", ["model", "gguf"])
def test_a_disk_without_room_leaves_what_was_there(wanted: str, source: str, request, tmp_path: Path) -> None:
    named = request.getfixturevalue(source)
    out = tmp_path / "out"
    run(named, "--format", wanted, "--out", out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for place in (out, tmp_path / "new"):
        with small_files(30_000), pytest.raises(DiskFull) as told:
            run(named, "--format", wanted, "--out", place, "--force")
        assert str(place) in told.value.what
        assert "tmp" not in told.value.what.removeprefix(f"There was no room to write {tmp_path}")
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("wanted", FORMATS)
def test_what_a_killed_export_left_is_removed_by_the_next_one(wanted: str, model: Path, tmp_path: Path) -> None:
    out, hours_ago = tmp_path / "out[1]", time.time() - 7200
    dead, dead_file, alive, others = (
        tmp_path / name for name in (".out[1].3.tmp", ".out[1].4.tmp", ".out[1].5.tmp", ".out1.3.tmp")
    )
    for folder in (dead, alive, others):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"0")
    dead_file.write_bytes(b"0")
    for path in (dead / "model.safetensors", dead, dead_file, others / "model.safetensors", others, alive):
        os.utime(path, (hours_ago, hours_ago))  # of the one that is alive, a file was written just now
    run(model, "--format", wanted, "--out", out)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".out1.3.tmp", ".out[1].5.tmp"]


@pytest.mark.parametrize("wanted", FORMATS)
def test_only_what_is_of_its_own_kind_is_replaced(wanted: str, model: Path, tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("mine")
    (folder := tmp_path / "folder").mkdir()
    os.mkfifo(pipe := tmp_path / "pipe")
    wrong = [model, pipe, file / "below", folder if wanted == "gguf" else file]
    for out in wrong:
        with pytest.raises(FolderError):
            run(model, "--format", wanted, "--out", out, "--force")
    for out in (file, folder, pipe, ""):
        with pytest.raises(SettingsError, match="exists already"):
            run(model, "--format", wanted, "--out", out)
    assert file.read_text() == "mine"
    assert pipe.is_fifo()
    run(model, "--format", wanted, "--out", file if wanted == "gguf" else folder, "--force")


def test_a_file_is_not_written_over_itself(gguf: Path) -> None:
    before = gguf.read_bytes()
    with pytest.raises(FolderError, match="is the model itself"):
        run(gguf, "--format", "gguf", "--type", "q8_0", "--out", gguf, "--force")
    assert gguf.read_bytes() == before


@pytest.mark.parametrize("source", ["model", "gguf"])
def test_a_model_that_is_replaced_leaves_no_shards_behind(source: str, request, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_model("qwen2", shard_bytes=20_000), out)
    (out / "notes.txt").write_text("mine")
    (out / "tokenizer.model").write_text("of the old model")
    run(request.getfixturevalue(source), "--format", "hf", "--out", out, "--force")
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "tokenizer.model").exists()
    assert read_spec(out, trust_remote_code=False).num_layers == 2


def test_shards_replace_a_single_file(model: Path, tmp_path: Path) -> None:
    sharded = tiny_model("qwen2", shard_bytes=20_000)
    run(sharded, "--format", "hf", "--out", model, "--force")
    assert sorted(path.name for path in model.iterdir()) == sorted(path.name for path in sharded.iterdir())


def test_an_export_inside_of_the_model_does_not_copy_the_last_one(model: Path) -> None:
    for force in ([], ["--force"]):
        run(model, "--format", "hf", *force)
        assert (model / "student-copy" / "config.json").is_file()
        assert not (model / "student-copy" / "student-copy").exists()


@pytest.mark.parametrize("wanted", FORMATS)
def test_a_model_in_the_cache_is_known_by_its_id(wanted: str, model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.move(model, tmp_path / "hub" / "models--acme--tiny" / "snapshots" / "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run("acme/tiny", "--format", wanted)
    assert [path.name for path in Path().iterdir()] == ["tiny"]
    with pytest.raises(FolderError, match="There is no folder acme/other"):
        run("acme/other", "--format", wanted)
