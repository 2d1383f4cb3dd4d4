"""The lock of a run: one supervisor works on it at a time, and readers see whether one does."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from engine.disk import file_lock
from engine.errors import FolderError

_ORPHAN_SECONDS = 30.0  # a phase whose supervisor was killed ends within 10
_ORPHAN_LOOK_SECONDS, _READER_SECONDS = 0.05, 0.001  # a reader has the lock for microseconds
_ROOM_BYTES = 1 << 14  # for a run's last events, on a disk that other programs have filled
_WITHOUT_ROOM_BYTES = 32  # of the process id and the line's end


class RunLock:
    """The lock in a run's folder.

    Attributes:
        path: the lock's file.
        without_locks: the file system has no locks; a file says who holds the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.without_locks = False

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """Hold the run: one supervisor at a time. The lock goes with the process, however it ends.

        A phase inherits it, so that no other supervisor starts while a phase of a killed supervisor runs; it ends by
        itself, and is waited for.

        Yields:
            The descriptor that holds the lock, for the phases.

        Raises:
            FolderError: another supervisor holds it.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            deadline = time.monotonic() + _ORPHAN_SECONDS
            while not self._try_lock(descriptor):
                if self.without_locks or time.monotonic() > deadline:
                    raise self._already_going()
                is_held = _is_held(descriptor)
                if is_held and _holder_lives(descriptor):
                    raise self._already_going()
                time.sleep(_ORPHAN_LOOK_SECONDS if is_held else _READER_SECONDS)
            with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode().ljust(_ROOM_BYTES, b"\n"))
            try:
                yield descriptor
            finally:
                if self.without_locks:
                    file_lock.drop_marker(self.path)
        finally:
            os.close(descriptor)

    def give_room(self) -> None:
        """Free the blocks that the lock's file keeps, so that a full disk takes the run's last events."""
        with contextlib.suppress(OSError):
            os.truncate(self.path, min(_WITHOUT_ROOM_BYTES, self.path.stat().st_size))

    def _try_lock(self, descriptor: int) -> bool:
        try:
            return file_lock.try_flock(descriptor)
        except OSError as error:
            if not file_lock.has_none(error):
                raise
        self.without_locks = True
        return file_lock.take_marker(self.path)

    def _already_going(self) -> FolderError:
        marker = file_lock.marker_of(self.path)
        elsewhere = self.without_locks and file_lock.marker_holder(self.path) == -1
        return FolderError(
            f"The run in {self.path.parent} is already running{' on another machine' if elsewhere else ''}.",
            "One process at a time works on a run.",
            f"Watch it: tinydistill-tui --attach {shlex.quote(str(self.path.parent))}"
            + (f"; if it no longer runs, delete {marker}." if elsewhere else ""),
        )

    def is_live(self) -> bool:
        """Return whether a supervisor holds the run: its lock is tried, for pids are reused."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not file_lock.try_flock(descriptor, shared=True)
        except OSError as error:
            return file_lock.has_none(error) and file_lock.marker_holder(self.path) is not None
        finally:
            os.close(descriptor)


def _is_held(descriptor: int) -> bool:
    """Return whether another process holds the run, and not a reader that tries the lock at this moment."""
    is_read = file_lock.try_flock(descriptor, shared=True)
    if is_read:
        file_lock.unlock(descriptor)
    return not is_read


def _holder_lives(descriptor: int) -> bool:
    """Return whether the supervisor that took the lock is there; if not, a phase that it has left behind holds it."""
    try:
        pid = int(os.pread(descriptor, 32, 0))
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")  # killed, but not yet reaped
