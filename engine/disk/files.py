"""Writing files so that a kill, a full disk or a power cut leaves the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine.disk.fault import commit_point
from engine.errors import DiskFull

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when a file takes no more."""

# What file systems say that cannot flush a folder: some FUSE and network file systems, and mounts of shared folders.
_NO_FOLDER_SYNC = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS, errno.EISDIR, errno.EACCES, errno.EPERM}
)


def no_room(what: str, error: OSError, *, kept: str = "", then: str = "then resume the run") -> DiskFull:
    """The error for a file that takes no more.

    Args:
        what: what could not be written, a sentence.
        error: its errno is one of :data:`NO_ROOM`.
        kept: what is not lost, the end of a sentence.
        then: what to do when there is room, the end of a sentence.
    """
    why, todo = {
        errno.EDQUOT: ("The quota of this user or project is used up", "Free some of it, or have it raised"),
        errno.EFBIG: (
            "A file may not become that large here: by the file system (FAT ends at 4 GB) or by a limit (ulimit -f)",
            "Raise the limit, or use a folder on another file system",
        ),
    }.get(error.errno or 0, ("The disk is full", "Free some space"))
    return DiskFull(what, f"{why}{f'; {kept}' if kept else ''}.", f"{todo}, {then}.")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either the old one or the new one, whole, even after a power cut.

    Raises:
        DiskFull: no room; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        with written_whole(path) as file:
            file.write(data)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise no_room(f"There was no room to write {path}: it takes {len(data):,} bytes.", error) from error
        raise


@contextlib.contextmanager
def written_whole(path: Path, *, point: str | None = None) -> Iterator[BinaryIO]:
    """A new file to write to, which takes its name when it is whole and on the disk; else nothing of it is left.

    Args:
        path: the file's name; an old file there is replaced.
        point: what its commit points are called; the file's name by default.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    point = point or path.name
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            commit_point(f"{point}-written")
            os.fsync(file.fileno())
        commit_point(f"{point}-synced")
        commit_file(temporary, path, point=point)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def commit_file(temporary: Path, path: Path, *, point: str) -> None:
    """Give a file that is whole and flushed its name, so that the name outlasts a power cut.

    Raises:
        OSError: it cannot be renamed.
    """
    temporary.replace(path)
    commit_point(f"{point}-renamed")
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
    """Make a rename in this folder outlast a power cut, where the file system can.

    One that cannot says so with an error that means nothing else: the files themselves have been flushed.

    Raises:
        OSError: the disk failed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
