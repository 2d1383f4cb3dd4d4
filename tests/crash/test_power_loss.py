"""The power goes at every step of every protocol; and each protocol with a step out of order is caught."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.cache import store
from engine.disk.hdf5_file import WrittenFile
from engine.student import checkpoint
from engine.student.checkpoint import Checkpoints
from tests.crash.protocols import PROTOCOLS, problems


@pytest.mark.parametrize("name", PROTOCOLS)
def test_power_lost_at_any_step_loses_nothing_that_was_called_done_and_leaves_nothing_wrong(
    tmp_path: Path, name: str
) -> None:
    states, wrong = problems(PROTOCOLS[name], tmp_path / "power")
    assert states >= 15
    assert wrong == []


Patch = Callable[[str, Any], None]


def without_flush(module: str) -> Callable[[Patch], None]:
    """Files that this module writes are not flushed."""

    def mutate(patch: Patch) -> None:
        real = {name: getattr(os, name) for name in dir(os) if not name.startswith("__")}
        patch(f"{module}.os", SimpleNamespace(**{**real, "fsync": lambda descriptor: None}))

    return mutate


def without(function: str) -> Callable[[Patch], None]:
    """This function does nothing."""
    return lambda patch: patch(function, lambda *args, **kwargs: None)


def journal_before_shard(patch: Patch) -> None:
    images: dict[Path, bytes] = {}
    write, append = store.write_shard, store.append_entry

    def only_promise(path: Path, image: bytes) -> str:
        images[path] = image
        return hashlib.sha256(image).hexdigest()

    def journal_first(folder: Path, entry: Any, name: str) -> None:
        append(folder, entry, name)
        write(folder / entry.name, images[folder / entry.name])

    patch("engine.cache.store.write_shard", only_promise)
    patch("engine.cache.store.append_entry", journal_first)


def shard_renamed_before_it_is_written(patch: Patch) -> None:
    def write(path: Path, image: bytes) -> str:
        path.write_bytes(image)
        return hashlib.sha256(image).hexdigest()

    patch("engine.cache.store.write_shard", write)


def checkpoint_renamed_before_it_is_written(patch: Patch) -> None:
    write = checkpoint._write_folder

    def in_place(path: Path, *rest: Any) -> int:
        final = path.with_name(path.name.split(".")[1])
        num_bytes = write(final, *rest)
        final.rename(path)
        return num_bytes

    patch("engine.student.checkpoint._write_folder", in_place)


def old_checkpoints_go_first(patch: Patch) -> None:
    write = Checkpoints._write

    def prune_then_write(self: Checkpoints, step: int, *rest: Any) -> Any:
        for old in self.steps():
            (self.folder / f"step-{old:08d}").rename(self.folder / f".step-{old:08d}.1.tmp")
        return write(self, step, *rest)

    patch("engine.student.checkpoint.Checkpoints._write", prune_then_write)


def written_in_place(patch: Patch) -> None:
    def write(path: Path, content: str | bytes) -> None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    patch("engine.run.folder.write_atomic", write)


def configuration_before_weights(patch: Patch) -> None:
    from engine.models import derive

    weights = derive._write_weights

    def config_first(spec: Any, kept: Any, parts: Any, path: Path) -> None:
        derive.write_atomic(path.parent / "config.json", (spec.path / "config.json").read_bytes())
        weights(spec, kept, parts, path)

    patch("engine.models.derive._write_weights", config_first)


def no_sync_of_tokens(patch: Patch) -> None:
    patch("engine.data.tokens.WrittenFile.sync", WrittenFile.check)


MUTATIONS: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "a shard is renamed before it is flushed": ("shard and journal", without_flush("engine.disk.files")),
    "a shard's name is not flushed": ("shard and journal", without("engine.disk.files.fsync_folder")),
    "a shard has its name while it is written": ("shard and journal", shard_renamed_before_it_is_written),
    "the journal names a shard before it is there": ("shard and journal", journal_before_shard),
    "the journal is not flushed": ("shard and journal", without_flush("engine.cache.journal")),
    "the journal's name is not flushed": ("shard and journal", without("engine.cache.journal.fsync_folder")),
    "weights are renamed before they are flushed": ("checkpoint", without_flush("engine.disk.tensor_file")),
    "a state is renamed before it is flushed": ("checkpoint", without_flush("engine.student.checkpoint")),
    "a checkpoint's names are not flushed": ("checkpoint", without("engine.student.checkpoint.fsync_folder")),
    "a checkpoint has its name while it is written": ("checkpoint", checkpoint_renamed_before_it_is_written),
    "old checkpoints go before the new one is there": ("checkpoint", old_checkpoints_go_first),
    "tokens are renamed before they are flushed": ("tokens", no_sync_of_tokens),
    "the tokens' name is not flushed": ("tokens", without("engine.disk.files.fsync_folder")),
    "run.json is renamed before it is flushed": ("run.json", without_flush("engine.disk.files")),
    "run.json is written in place": ("run.json", written_in_place),
    "run.json's name is not flushed": ("run.json", without("engine.disk.files.fsync_folder")),
    "a result is renamed before it is flushed": ("phase result", without_flush("engine.disk.files")),
    "the student is renamed before it is flushed": ("student", without("engine.student.export.fsync_file")),
    "the student's names are not flushed": ("student", without("engine.student.export.fsync_folder")),
    "the first student's tokenizer is not flushed": ("first student", without("engine.models.derive.fsync_file")),
    "the first student's configuration comes before its weights": ("first student", configuration_before_weights),
}


# One of each protocol by default; the others take seconds more, and are of the same kinds.
QUICK = (
    "a shard is renamed before it is flushed",
    "the journal names a shard before it is there",
    "old checkpoints go before the new one is there",
    "weights are renamed before they are flushed",
    "tokens are renamed before they are flushed",
    "run.json is written in place",
    "a result is renamed before it is flushed",
    "the first student's configuration comes before its weights",
)


@pytest.mark.parametrize(
    "mutation", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MUTATIONS]
)
def test_a_protocol_with_a_step_out_of_order_is_caught(
    tmp_path: Path, mutation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, mutate = MUTATIONS[mutation]
    with monkeypatch.context() as patched:
        mutate(patched.setattr)
        _, wrong = problems(PROTOCOLS[protocol], tmp_path / "power", most=1)
    assert wrong, f"nothing was found wrong although {mutation}"


@pytest.mark.slow
def test_folders_whose_names_are_not_flushed_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(path: Path, *, parents: bool = True) -> None:
        path.mkdir(parents=parents, exist_ok=True)

    for module, name in (
        ("cache.store", "shard and journal"),
        ("student.checkpoint", "checkpoint"),
        ("run.folder", "phase result"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(f"engine.{module}.make_folder", make)
            _, wrong = problems(PROTOCOLS[name], tmp_path / module, most=1)
        assert wrong, f"nothing was found wrong in {name}"
