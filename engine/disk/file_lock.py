"""Locks of the operating system, and a marker file as a replacement on file systems without locks.

NFS without its lock daemon, Lustre without ``-o flock`` and some FUSE file systems answer flock(2) with an error. There
a small file beside the lock names the process that holds it. It is created with O_EXCL, and another process takes it
over when that process has ended. It is weaker than a lock (processes on other machines are invisible), so callers
report it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sys
import time
from pathlib import Path

if sys.platform != "win32":  # where help works, and nothing is locked (engine.machine.system)
    import fcntl

NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""Errors of flock(2) on a file system without locks."""

_SETTLE_SECONDS = 0.05


def has_none(error: OSError) -> bool:
    """Return whether flock failed because the file system has no locks."""
    return error.errno in NO_LOCKS


def no_locks(folder: Path) -> str:
    """Return the warning for a folder without locks."""
    return (
        f"The file system of {folder} has no locks; a file in it says which process works there. Do not work on it "
        "from two machines at once."
    )


def try_flock(descriptor: int, *, shared: bool = False) -> bool:
    """Take a lock of the operating system without waiting; False if another process holds it.

    Raises:
        OSError: it cannot be locked; see :func:`has_none`.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Release a lock of the operating system."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def marker_of(lock: Path) -> Path:
    """Return the marker file of a lock: ``lock.holder`` for ``lock``."""
    return lock.with_name(lock.name + ".holder")


def take_marker(lock: Path) -> bool:
    """Take a lock by its marker file; False if another process holds it.

    Raises:
        OSError: the marker cannot be written.
    """
    marker = marker_of(lock)
    mine = json.dumps({"pid": os.getpid(), "began": _began(os.getpid()), "machine": _machine()})
    for _ in range(3):
        try:
            descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            if marker_holder(lock) is not None:
                return False
            with contextlib.suppress(FileNotFoundError):
                marker.unlink()
            continue
        try:
            os.write(descriptor, mine.encode())
        finally:
            os.close(descriptor)
        time.sleep(_SETTLE_SECONDS)  # another process may have found the same dead holder and removed our marker
        return _content(marker) == mine
    return False


def marker_holder(lock: Path) -> int | None:
    """Return the process named by a marker; None if there is none or it has ended; -1 for another machine."""
    content = _content(marker_of(lock))
    if content is None:
        return None
    try:
        told = json.loads(content)
        pid, began, machine = int(told["pid"]), told["began"], told["machine"]
    except (ValueError, KeyError, TypeError):
        return None  # killed while it was written
    if machine != _machine():
        return -1
    return pid if _began(pid) == began is not None else None


def drop_marker(lock: Path) -> None:
    """Release a lock that is held by its marker file."""
    with contextlib.suppress(OSError):
        marker_of(lock).unlink()


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _machine() -> str:
    """Return an id of this machine's boot; process ids are only valid within it."""
    boot = _content(Path("/proc/sys/kernel/random/boot_id")) or ""
    return f"{platform.node()} {boot.strip()}"


def _began(pid: int) -> str | None:
    """Return a process's start time in kernel ticks, as process ids are reused; None if it has ended or is a zombie."""
    status = _content(Path(f"/proc/{pid}/stat"))
    if status is not None:
        fields = status.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    try:
        os.kill(pid, 0)
    except OSError as error:
        return "unknown" if error.errno == errno.EPERM else None
    return "unknown"  # a system without /proc
