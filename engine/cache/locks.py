"""Who is at work in a cache: one writer at a time, any number of readers beside it, and nobody while it is removed.

Locks of the operating system on two small files, which go with the process however it ends: ``lock`` for the writer,
``in-use`` shared by everybody who has the cache open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

WRITER = "lock"
IN_USE = "in-use"


class Locks:
    """The locks that one open cache holds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[int] = []

    def try_writer(self) -> bool:
        """Become the writer; False when another process is."""
        return self._try(WRITER, fcntl.LOCK_EX)

    def use(self) -> bool:
        """Say that the cache is in use, and when; False while it is being removed."""
        try:
            if not self._try(IN_USE, fcntl.LOCK_SH):
                return False
            os.utime(self._folder / IN_USE)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):  # where we cannot write, nobody removes
                raise
        return True

    def try_alone(self) -> bool:
        """Be the only one who has the cache open; False when somebody else has."""
        return self.try_writer() and self._try(IN_USE, fcntl.LOCK_EX, create=False)

    def release(self) -> None:
        """Let go of everything."""
        while self._held:
            os.close(self._held.pop())

    def _try(self, name: str, kind: int, *, create: bool = True) -> bool:
        path = self._folder / name
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)
            except FileNotFoundError:
                if create:
                    raise
                return True  # nobody has ever locked it
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except BaseException:
                os.close(descriptor)
                raise
            # The file may have been removed, with its cache, between opening and locking: then this lock is nobody's.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                    self._held.append(descriptor)
                    return True
            os.close(descriptor)
