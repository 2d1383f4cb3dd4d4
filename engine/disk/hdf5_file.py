"""A file for HDF5 to write to that survives a full disk.

HDF5 cannot handle a failed write: the file can then neither be closed nor left open, and the process ends with a
segmentation fault (seen with h5py 3.16). So HDF5 writes through this file, which never fails: it stores the first
error, ignores later writes, and the caller must call ``check`` before using the file.

    with WrittenFile(temporary, path) as raw:
        with h5py.File(raw, "w") as file: ...
        raw.sync()                              # raises what went wrong, here or before
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.disk.files import NO_ROOM, no_room


class WrittenFile:
    """The part of a binary file that h5py's file-object driver needs.

    Attributes:
        error: the first error of the disk, or None.
    """

    def __init__(self, path: Path, final_path: Path) -> None:
        """Create a new file at ``path``; messages name ``final_path``.

        Raises:
            FileExistsError: there is one already.
            DiskFull: there is no room for it.
        """
        self._path = path
        self._final_path = final_path
        self._place = 0
        self._size = 0
        self.error: OSError | None = None
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            self.error = error
            self.check()
            raise

    def check(self) -> None:
        """Check that all writes so far succeeded.

        Raises:
            DiskFull: there was no room.
            OSError: a write failed for another reason.
        """
        if self.error is None:
            return
        if self.error.errno in NO_ROOM:
            free = shutil.disk_usage(self._path.parent).free
            raise no_room(
                f"There was no room to write {self._final_path}: it has {self._size:,} bytes so far and grows, "
                f"{free:,} are free.",
                self.error,
            ) from self.error
        raise self.error

    def sync(self) -> None:
        """Flush everything to the disk, and check.

        Raises:
            DiskFull, OSError: as ``check``.
        """
        self._try(lambda: os.fsync(self._descriptor))
        self.check()

    def close(self) -> None:
        """Close the file; it stays at its path."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Called by h5py.

    def write(self, data: memoryview) -> int:
        """Write at the current position."""
        size = len(data)
        self._try(lambda: self._write(data))
        self._place += size
        self._size = max(self._size, self._place)
        return size

    def read(self, size: int) -> bytes:
        """Read back."""
        buffer = bytearray(size)
        self.readinto(memoryview(buffer))
        return bytes(buffer)

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes; zeros for bytes that were never written or are lost, which HDF5 treats as an empty part."""
        data = os.pread(self._descriptor, len(buffer), self._place)
        buffer[: len(data)] = data
        buffer[len(data) :] = bytes(len(buffer) - len(data))
        self._place += len(buffer)
        return len(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the current position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        """Return the current position."""
        return self._place

    def truncate(self, size: int) -> int:
        """Truncate or extend the file."""
        self._try(lambda: os.ftruncate(self._descriptor, size))
        self._size = size
        return size

    def flush(self) -> None:
        """Do nothing: writes are not buffered."""

    def _write(self, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], self._place + done)

    def _try(self, action: Callable[[], object]) -> None:
        if self.error is not None:
            return
        try:
            action()
        except OSError as error:
            self.error = error
