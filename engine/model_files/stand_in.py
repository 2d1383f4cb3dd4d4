"""Folders that stand for a model whose files are something else: a GGUF file, a wrapper, quantised weights, an adapter.

Such a folder has a plain config.json and the tokenizer, and a file that says where the weights are. Everything that
reads a model's folder reads it too. It is in the user's cache, is made once for each state of the model's files, and
takes the space of the tokenizer. Folders that were not used for a month, and the oldest beyond a gigabyte, are removed
when another one is made; never one that a process has in use. Knows nothing of formats.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.disk import places
from engine.disk.file_lock import try_flock
from engine.disk.files import NO_ROOM, fsync_file, fsync_folder, no_room
from engine.errors import ModelError
from engine.model_files.headers import read_json

SOURCE = "weights_from.json"
"""In such a folder: where its weights are."""

_FORMAT = 3  # of the folders; another number makes all of them again
_DAY = 86_400.0
_MOST_DAYS_UNUSED = 30
_MOST_BYTES = 2**30
_MAKING_SECONDS = 3_600.0  # longer than any folder takes to be made: one that is still hidden was left by a kill
_TEMPORARY = "tinydistill-models-"

_held: dict[Path, int] = {}  # descriptors with a shared lock, of the folders that this process has in use


def stand_in(name: str, kind: str, files: Sequence[Path], make: Callable[[Path], dict[str, Any]]) -> Path:
    """The folder that stands for some files; made where it is not there yet.

    Args:
        name: of the model.
        kind: of the files, which the folder keeps.
        files: whose size and time of change identify a state of the model.
        make: fills an empty folder, and returns what :func:`source_of` shall give back.

    Raises:
        DiskFull: there is no room for the folder.
    """
    states = [(str(file.absolute()), (told := file.stat()).st_size, told.st_mtime_ns) for file in files]
    key = hashlib.blake2b(json.dumps([_FORMAT, kind, states]).encode(), digest_size=8).hexdigest()
    home = _home()
    folder = home / f"{name[:80]}-{key}"
    if _hold(folder):
        return folder
    try:
        _make(folder, kind, files, make)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise no_room(
                f"There was no room to write the configuration and tokenizer of {name} to {home}.",
                error,
                then="or set XDG_CACHE_HOME to a folder on another disk (on Linux)",
            ) from error
        raise
    _hold(folder)
    tidy(home)
    return folder


def _make(folder: Path, kind: str, files: Sequence[Path], make: Callable[[Path], dict[str, Any]]) -> None:
    home = folder.parent
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=home))
    try:
        told_files = {str(file.absolute()): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
        source = {"kind": kind, "files": told_files, **make(aside)}
        (aside / SOURCE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
        aside.chmod(0o755)
        for made in aside.rglob("*"):  # after a power cut, a name without its bytes would be taken for a whole folder
            if made.is_file():
                fsync_file(made)
        fsync_folder(aside)
        try:
            aside.rename(folder)
        except OSError:
            if not (folder / SOURCE).is_file():  # else another process was quicker
                shutil.rmtree(folder, ignore_errors=True)
                aside.rename(folder)
        fsync_folder(home)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def source_of(folder: Path) -> dict[str, Any] | None:
    """Return the model that a folder stands for; None if it is a model itself.

    Raises:
        ModelError: the files are gone, or changed.
    """
    if not (folder / SOURCE).is_file():
        return None
    _hold(folder)
    source = read_json(folder / SOURCE)
    for name, state in source["files"].items():
        try:
            told = os.stat(name)
        except OSError:
            raise ModelError(
                f"A file of the model is gone: {name}.",
                "Its weights are read from there.",
                "Put it back, or name the model by its new place.",
            ) from None
        if [told.st_size, told.st_mtime_ns] != state:
            raise ModelError(f"{name} changed while it was in use.", "", "Start again.")
    return source


def tidy(home: Path) -> None:
    """Remove folders that are old, too many, or left behind by a kill; those in use stay.

    Args:
        home: where the folders are.
    """
    now, total = time.time(), 0
    with contextlib.suppress(OSError):
        for entry in home.iterdir():
            if entry.name.startswith(".") and now - _changed(entry, now) > _MAKING_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
        folders = [entry for entry in home.iterdir() if not entry.name.startswith(".") and (entry / SOURCE).is_file()]
        for folder in sorted(folders, key=lambda folder: _changed(folder / SOURCE, now), reverse=True):
            total += sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            unused = now - _changed(folder / SOURCE, now)
            if unused > _MOST_DAYS_UNUSED * _DAY or (total > _MOST_BYTES and unused > _MAKING_SECONDS):
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder unless a process has it in use."""
    descriptor = os.open(folder / SOURCE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _is_free(descriptor):
            gone = folder.with_name(f".{folder.name}.gone")
            folder.rename(gone)  # at once: a folder without some of its files would be taken for whole
            shutil.rmtree(gone, ignore_errors=True)
    finally:
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    """Return whether no process has a folder in use; on a file system without locks, its age decides."""
    try:
        return try_flock(descriptor)
    except OSError:
        return True


def _hold(folder: Path) -> bool:
    """Keep a folder from being removed until this process ends; False where it is not there."""
    try:
        descriptor = os.open(folder / SOURCE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        try_flock(descriptor, shared=True)
    try:
        if os.fstat(descriptor).st_ino != os.stat(folder / SOURCE).st_ino:
            raise FileNotFoundError  # another process removed it in between
        if (
            time.time() - os.fstat(descriptor).st_mtime > _DAY
        ):  # not each time: caches of what is in the folder look at this
            with contextlib.suppress(OSError):
                os.utime(folder / SOURCE)
    except OSError:
        os.close(descriptor)
        return False
    held = _held.pop(folder, None)
    if held is not None:
        os.close(held)
    _held[folder] = descriptor
    return True


def _changed(path: Path, default: float) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return default


def _home() -> Path:
    """Where the folders are kept; a temporary place of this process's own where the user's cache cannot be written."""
    home = places.cache() / "models"
    with contextlib.suppress(OSError):
        if not places.is_nowhere(home):
            home.mkdir(parents=True, exist_ok=True)
            if os.access(home, os.W_OK | os.X_OK):
                return home
    return _temporary_home()


@functools.cache
def _temporary_home() -> Path:
    _tidy_temporary_homes(Path(tempfile.gettempdir()))
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def _tidy_temporary_homes(place: Path) -> None:
    """Remove temporary places of killed processes: this user's, a day old, and none of their folders in use."""
    now = time.time()
    with contextlib.suppress(OSError):
        for home in place.glob(f"{_TEMPORARY}*"):
            told = home.stat()
            if told.st_uid != os.getuid() or now - told.st_mtime < _DAY:
                continue
            for folder in [entry for entry in home.iterdir() if (entry / SOURCE).is_file()]:
                with contextlib.suppress(OSError):
                    _remove(folder)
            if not any((entry / SOURCE).is_file() for entry in home.iterdir()):
                shutil.rmtree(home, ignore_errors=True)
