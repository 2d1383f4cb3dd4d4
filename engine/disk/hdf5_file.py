"""A file for HDF5 to write to that survives a full disk.

HDF5 cannot take a failed write: the file can then neither be closed nor left open, and the process dies of a
segmentation fault when it ends (seen with h5py 3.16). So HDF5 writes through this file, which never fails: it remembers
the first error, swallows what follows, and whoever writes asks ``check`` before trusting the file.

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
    """The part of a binary file that h5py's file-object driver asks for.

    Attributes:
        error: the first error of the disk; None while there was none.
    """

    def __init__(self, path: Path, final_path: Path) -> None:
        """Make a new file at ``path``; messages name ``final_path``.

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
        """Say whether everything so far was written.

        Raises:
            DiskFull: there was no room.
            OSError: the disk refused for another reason.
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
        """Bring everything to the disk, and check.

        Raises:
            DiskFull, OSError: as ``check``.
        """
        self._try(lambda: os.fsync(self._descriptor))
        self.check()

    def close(self) -> None:
        """Close the file, which stays where it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What h5py calls.

    def write(self, data: memoryview) -> int:
        """Write at the current place."""
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
        """Read back; zeros for what was never written or got lost, which HDF5 takes for an empty part."""
        data = os.pread(self._descriptor, len(buffer), self._place)
        buffer[: len(data)] = data
        buffer[len(data) :] = bytes(len(buffer) - len(data))
        self._place += len(buffer)
        return len(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the current place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        """The current place."""
        return self._place

    def truncate(self, size: int) -> int:
        """Cut or lengthen the file."""
        self._try(lambda: os.ftruncate(self._descriptor, size))
        self._size = size
        return size

    def flush(self) -> None:
        """Nothing is buffered here."""

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
