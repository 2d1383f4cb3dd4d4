"""Atomic writing of files: a kill, a full disk or a power loss leaves the old or the new file, complete."""

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
"""Errors of a write that finds no room."""

# Errors of file systems that cannot flush a folder: some FUSE and network file systems, and mounts of shared folders.
_NO_FOLDER_SYNC = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS, errno.EISDIR, errno.EACCES, errno.EPERM}
)


def no_room(what: str, error: OSError, *, kept: str = "", then: str = "then resume the run") -> DiskFull:
    """Return the error for a write that found no room.

    Args:
        what: what could not be written, a sentence.
        error: its errno is one of :data:`NO_ROOM`.
        kept: what is kept, the end of a sentence.
        then: what to do once there is room, the end of a sentence.
    """
    why, todo = {
        errno.EDQUOT: ("The quota of this user or project is used up", "Free some of it, or have it raised"),
        errno.EFBIG: (
            "A file may not become that large here: by the file system (FAT ends at 4 GB) or by a limit (ulimit -f)",
            "Raise the limit, or use a folder on another file system",
        ),
    }.get(error.errno or 0, ("The disk is full", "Free some space"))
    if error.errno == errno.ENOSPC and error.filename is not None and _takes_no_more_files(Path(error.filename).parent):
        why, todo = "The file system takes no more files: its inodes are used up", "Remove some files"
    return DiskFull(what, f"{why}{f'; {kept}' if kept else ''}.", f"{todo}, {then}.")


def _takes_no_more_files(folder: Path) -> bool:
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):  # Windows has none
        return False
    return status.f_files > 0 and status.f_favail == 0


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file atomically: even after a power loss it is either the old or the new one.

    Raises:
        DiskFull: no room; the old file is unchanged.
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
    """Open a new file that gets its name once it is complete on the disk; otherwise it is removed.

    Args:
        path: the file's name; an old file there is replaced.
        point: name of its commit points; the file's name by default.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
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
    """Rename a complete, flushed file so that the name survives a power loss.

    Raises:
        OSError: it cannot be renamed.
    """
    temporary.replace(path)
    commit_point(f"{point}-renamed")
    fsync_folder(path.parent)


def make_folder(path: Path, *, parents: bool = True) -> None:
    """Create a folder so that its name survives a power loss; do nothing if it exists.

    If a folder's name was never flushed, a power loss removes the flushed files in it too.

    Args:
        path: the folder.
        parents: create its parents too. A folder inside a run's is made without: the folder of a run that was deleted
            while it works is not made again.

    Raises:
        FileNotFoundError: its parent is missing, and is not to be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=parents, exist_ok=True)
    for folder in reversed(missing):
        fsync_folder(folder.parent)


def fsync_file(path: Path) -> None:
    """Flush a file that other code has written to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed writers, directly in this folder."""
    for left_behind in folder.glob("*.*.tmp"):
        if left_behind.is_file() and re.search(r"\.\d+\.tmp$", left_behind.name):
            left_behind.unlink(missing_ok=True)


def fsync_folder(path: Path) -> None:
    """Make a rename in this folder survive a power loss, if the file system supports it.

    The errors of file systems that do not are ignored: they have no other meaning, and the files have been flushed.

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
