"""Checkpoints: folders that are written atomically.

::

    checkpoints/step-00000200/
        weights.safetensors     what is trained: the student's parameters and buffers, or those of its adapter
        optimizer.safetensors   the optimizer's moments
        rng.safetensors         torch's generators
        state.json              step, best so far, counters, Python's and numpy's generators
        checksums.json          bytes and SHA-256 of each of the others

A checkpoint is written under a temporary name, each file is flushed to the disk, and then the folder is renamed: a kill
or a power loss leaves the earlier ones unchanged. No file is pickled. Every byte is verified at reading; a damaged
checkpoint is set aside and reported, and the one before it is used.

This file knows nothing of training: it stores tensors and a dictionary.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from engine.disk.fault import commit_point
from engine.disk.files import NO_ROOM, fsync_folder, make_folder, no_room
from engine.disk.tensor_file import write_pieces
from engine.machine.out_of_memory import is_out_of_memory
from engine.machine.torch_device import generator_states, restore_generators
from engine.student.parts import Place, Stored, bytes_of, own_rows, pieces_of

_NAME = re.compile(r"step-(\d{8})")
_TENSOR_FILES = ("weights", "optimizer", "rng")


@dataclass(frozen=True)
class StudentCheckpoint:
    """A checkpoint on disk that was complete when it was verified.

    Attributes:
        path: the folder.
        step: optimizer steps done.
        state: what was given to :meth:`Checkpoints.writing` as ``state``.
    """

    path: Path
    step: int
    state: dict[str, Any]

    @contextlib.contextmanager
    def tensors(self, kind: str) -> Any:
        """Return the tensors of one file, mapped from the disk and read on use."""
        with safe_open(self.path / f"{kind}.safetensors", framework="pt") as file:
            yield _Lazy(file)

    @torch.no_grad()
    def load_weights(self, into: Mapping[str, Tensor]) -> None:
        """Copy the saved weights into tensors of the same names, or into the parts of them that this rank has."""
        with self.tensors("weights") as saved:
            for name, tensor in into.items():
                tensor.copy_(own_rows(saved, name, tensor))

    def restore_generators(self) -> None:
        """Restore all random number generators."""
        with self.tensors("rng") as saved:
            restore_generators(saved)
        version, words, gauss = self.state["generators"]["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, place, has_gauss, cached = self.state["generators"]["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), place, has_gauss, cached))


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: created if it is missing.
        keep: number of newest checkpoints to keep, besides the best.
        on_problem: called with a sentence about each damaged checkpoint.
    """

    def __init__(self, folder: Path, *, keep: int, on_problem: Callable[[str], None]) -> None:
        self.folder = folder
        self._keep = keep
        self._on_problem = on_problem

    def writing(
        self,
        step: int,
        *,
        weights: Mapping[str, Stored],
        optimizer: Mapping[str, Stored],
        state: Mapping[str, Any],
        best_step: int | None = None,
    ) -> Callable[[], tuple[Path, int]]:
        """Return a function that writes a checkpoint, then removes old ones, and returns its folder and bytes.

        The random generators are saved as they are now. The tensors are read by the function: they may not change
        before it has returned. It raises DiskFull where there is no room; the checkpoints before it are untouched.

        Args:
            step: optimizer steps done.
            weights: the trained tensors (:meth:`engine.student.trainable.Trainable.tensors`).
            optimizer: the moments.
            state: everything else that a resumed training needs; JSON.
            best_step: a step whose checkpoint is kept.
        """
        tensors = {"weights": weights, "optimizer": optimizer, "rng": generator_states()}
        return partial(self._write, step, tensors, {**state, "step": step, "generators": _generators()}, best_step)

    def _write(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Stored]],
        state: Mapping[str, Any],
        best_step: int | None,
    ) -> tuple[Path, int]:
        make_folder(self.folder, parents=False)
        self.sweep()
        path = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{path.name}.{os.getpid()}.tmp"
        needed = sum(bytes_of(tensor) for group in tensors.values() for tensor in group.values())
        try:
            written = _write_folder(temporary, tensors, state)
            if path.exists():
                shutil.rmtree(path)  # left from before a step back to an older one; deterministic, so it is the same
            commit_point("checkpoint-before-rename")
            temporary.rename(path)
            commit_point("checkpoint-renamed")
            fsync_folder(self.folder)
            commit_point("checkpoint-durable")
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            shutil.rmtree(temporary, ignore_errors=True)
            free = shutil.disk_usage(self.folder).free
            raise no_room(
                f"There was no room for a checkpoint in {self.folder}: it takes {needed:,} bytes, {free:,} are free.",
                error,
                kept="the checkpoint before it is kept",
            ) from error
        self._prune(best_step)
        return path, written

    def latest(self) -> StudentCheckpoint | None:
        """Return the newest undamaged checkpoint, or None. Damaged ones are set aside and reported."""
        damaged = 0
        for step in reversed(self.steps()):
            if (found := self.read(step)) is not None:
                return found
            damaged += 1
        if damaged:
            self._on_problem(
                f"No checkpoint in {self.folder} is whole: the student learns from its beginning, from the same "
                "records."
            )
        return None

    def read(self, step: int) -> StudentCheckpoint | None:
        """Return the checkpoint of a step, if it exists and is undamaged; a damaged one is set aside and reported."""
        path = self.folder / f"step-{step:08d}"
        if not path.is_dir():
            return None
        problem = find_damage(path)
        if problem is None:
            return StudentCheckpoint(path, step, json.loads((path / "state.json").read_text(encoding="utf-8")))
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        self._on_problem(f"The checkpoint {path} is damaged ({problem}); it is kept as {aside.name} and not used.")
        return None

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, damaged or not, in increasing order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for entry in self.folder.iterdir() if (match := _NAME.fullmatch(entry.name)))

    def sweep(self) -> None:
        """Remove partial files of a killed process."""
        for entry in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(entry, ignore_errors=True)

    def _prune(self, best_step: int | None) -> None:
        for step in self.steps()[: -self._keep]:
            if step != best_step:
                # One rename removes it, so that a kill never leaves half of a checkpoint under its name.
                doomed = self.folder / f".step-{step:08d}.{os.getpid()}.tmp"
                (self.folder / f"step-{step:08d}").rename(doomed)
                commit_point("checkpoint-pruning")
                shutil.rmtree(doomed, ignore_errors=True)


def find_damage(path: Path) -> str | None:
    """Return the damage of a checkpoint's files as a sentence; None if every byte is as written."""
    try:
        checksums = json.loads((path / "checksums.json").read_text(encoding="utf-8"))
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in checksums.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise  # an error of the system, not of the file
        return f"checksums.json cannot be read: {type(error).__name__}"
    if set(expected) != {"state.json", *(f"{kind}.safetensors" for kind in _TENSOR_FILES)}:
        return "checksums.json does not name every file"
    for name, (num_bytes, sha256) in expected.items():
        try:
            if (size := (path / name).stat().st_size) != num_bytes:
                return f"{name} has {size:,} bytes, not {num_bytes:,}"
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return f"{name} is not what was written"
        except OSError as error:
            if is_out_of_memory(error):
                raise
            return f"{name} cannot be read: {error.strerror}"
    return None


class _Lazy:
    """Tensors of an open safetensors file, as a mapping."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._names = frozenset(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def part(self, name: str, place: Place) -> Tensor:
        """Some rows of a tensor; no others are read."""
        part: Tensor = self._file.get_slice(name)[place]
        return part

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Any:
        return iter(self._names)

    def keys(self) -> frozenset[str]:
        return self._names


def _write_folder(path: Path, tensors: Mapping[str, Mapping[str, Stored]], state: Mapping[str, Any]) -> int:
    path.mkdir()
    checksums: dict[str, dict[str, Any]] = {}
    for kind, group in tensors.items():
        name = f"{kind}.safetensors"
        described = [(key, tensor.dtype, tensor.shape) for key, tensor in group.items()]
        pieces = (piece for tensor in group.values() for piece in pieces_of(tensor))
        checksums[name] = {"sha256": write_pieces(path / name, described, pieces)}
        commit_point(f"checkpoint-{kind}")
    text = json.dumps(state).encode()
    _write_file(path / "state.json", text)
    checksums["state.json"] = {"sha256": hashlib.sha256(text).hexdigest()}
    for name, entry in checksums.items():
        entry["bytes"] = (path / name).stat().st_size
    commit_point("checkpoint-state")
    _write_file(path / "checksums.json", json.dumps(checksums, indent=1).encode())
    commit_point("checkpoint-checksums")
    fsync_folder(path)
    return sum(entry.stat().st_size for entry in path.iterdir())


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _generators() -> dict[str, Any]:
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), place, has_gauss, cached]}
