"""Writing files so that a kill, a full disk or a power cut leaves the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from engine.errors import DiskFull


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
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"There was no room to write {path} ({len(data):,} bytes).",
                "The disk is full.",
                "Free some space, then resume the run.",
            ) from error
        raise
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make a rename in this folder outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
