"""Writing files so that a kill, a full disk or a power cut leaves the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

from engine.errors import DiskFull
from engine.fault import commit_point


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either the old one or the new one, whole, even after a power cut.

    Raises:
        DiskFull: no room; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            commit_point(f"{path.name}-written")
            os.fsync(file.fileno())
        commit_point(f"{path.name}-synced")
        temporary.replace(path)
        commit_point(f"{path.name}-renamed")
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"There was no room to write {path}: it takes {len(data):,} bytes.",
                "The disk is full.",
                "Free some space, then resume the run.",
            ) from error
        raise
    fsync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, with those above it, so that its name outlasts a power cut; nothing happens when it is there.

    A folder whose name was never flushed takes with it whatever was flushed inside.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        fsync_folder(folder.parent)


def fsync_file(path: Path) -> None:
    """Bring a file to the disk that something else has written."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left under temporary names, right in this folder."""
    for left_behind in folder.glob("*.*.tmp"):
        if left_behind.is_file() and re.search(r"\.\d+\.tmp$", left_behind.name):
            left_behind.unlink(missing_ok=True)


def fsync_folder(path: Path) -> None:
    """Make a rename in this folder outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
