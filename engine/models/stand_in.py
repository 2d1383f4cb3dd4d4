"""Folders that stand for a model whose files are something else: a GGUF file, a vision wrapper, quantised weights.

Such a folder has a plain config.json and the tokenizer, and a file that says where the weights are. Everything that
reads a model's folder reads it too. It lies in the user's cache, is made once for each state of the model's files, and
takes the space of the tokenizer. Knows nothing of formats.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine import places
from engine.disk.files import fsync_file, fsync_folder
from engine.errors import ModelError
from engine.models.headers import read_json

SOURCE = "weights_from.json"
"""In such a folder: where its weights are."""

_FORMAT = 2  # of the folders; another number makes all of them anew


def stand_in(name: str, kind: str, files: Sequence[Path], make: Callable[[Path], dict[str, Any]]) -> Path:
    """The folder that stands for some files; made where it is not there yet.

    Args:
        name: of the model.
        kind: of the files, which the folder keeps.
        files: whose size and time of change tell one state of the model from another.
        make: fills an empty folder, and returns what :func:`source_of` shall give back.
    """
    states = [(str(file.absolute()), (told := file.stat()).st_size, told.st_mtime_ns) for file in files]
    key = hashlib.blake2b(json.dumps([_FORMAT, kind, states]).encode(), digest_size=8).hexdigest()
    home = _home()
    folder = home / f"{name[:80]}-{key}"
    if (folder / SOURCE).is_file():
        return folder
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
    return folder


def source_of(folder: Path) -> dict[str, Any] | None:
    """Return the model that a folder stands for; None if it is a model itself.

    Raises:
        ModelError: the files are gone, or changed.
    """
    if not (folder / SOURCE).is_file():
        return None
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
    temporary = Path(tempfile.mkdtemp(prefix="tinydistill-models-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary
