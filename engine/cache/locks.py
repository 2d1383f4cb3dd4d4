"""Locks of a cache: one writer at a time or several ranks, any number of readers, and no user during removal.

The operating system locks two small files and releases them when the process ends: ``lock`` for the writer, ``in-use``
shared by all processes that have the cache open. On a file system without locks, a file names the writer
(:mod:`engine.disk.file_lock`) and readers are unknown; no cache is removed there, because it might be in use.

Ranks share the writer's lock, so that no other run scores the same rows meanwhile. Their files have names of their own,
so nothing is lost where the file system has no locks.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from engine.disk import file_lock

WRITER = "lock"
IN_USE = "in-use"


class Locks:
    """Locks that one open cache holds.

    Attributes:
        missing: the file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.missing = False
        self._folder = folder
        self._marked = False
        self._held: list[int] = []

    def try_writer(self) -> bool:
        """Become the writer; False if another process is the writer."""
        return self._try(WRITER)

    def try_beside(self) -> bool:
        """Become one of several writers with names of their own; False if another process is the only writer."""
        return self._try(WRITER, shared=True)

    def use(self) -> bool:
        """Mark the cache as in use, with the time; False while it is being removed."""
        try:
            if not self._try(IN_USE, shared=True):
                return False
            os.utime(self._folder / IN_USE)
        except OSError as error:
            if error.errno not in (
                errno.EROFS,
                errno.EACCES,
                errno.EPERM,
            ):  # a cache that is not writable cannot be removed
                raise
        return True

    def try_alone(self) -> bool:
        """Become the only user of the cache; False if another process has it open."""
        return self.try_writer() and not self.missing and self._try(IN_USE, create=False)

    def release(self) -> None:
        """Release all locks."""
        while self._held:
            os.close(self._held.pop())
        if self._marked:
            self._marked = False
            file_lock.drop_marker(self._folder / WRITER)

    def _try(self, name: str, *, shared: bool = False, create: bool = True) -> bool:
        path = self._folder / name
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)
            except FileNotFoundError:
                if create:
                    raise
                return True  # it has never been locked
            try:
                is_ours = file_lock.try_flock(descriptor, shared=shared)
            except OSError as error:
                os.close(descriptor)
                if not file_lock.has_none(error):
                    raise
                return self._try_without_locks(path, shared=shared)
            if not is_ours:
                os.close(descriptor)
                return False
            # The file may have been removed, with its cache, between opening and locking: then this lock is worthless.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                    self._held.append(descriptor)
                    return True
            os.close(descriptor)

    def _try_without_locks(self, path: Path, *, shared: bool) -> bool:
        self.missing = True
        if shared:
            return True
        self._marked = file_lock.take_marker(path)
        return self._marked
