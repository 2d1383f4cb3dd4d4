"""Locks of the operating system, and what stands in for them where a file system has none.

NFS without its lock daemon, Lustre without ``-o flock`` and some FUSE file systems answer flock(2) with an error. There
a small file beside the lock says which process holds it: made with O_EXCL, and taken over when that process is gone. It
is weaker than a lock (a process on another machine cannot be looked at), so whoever uses it says so.
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
"""What flock(2) says where the file system has no locks."""

_SETTLE_SECONDS = 0.05


def has_none(error: OSError) -> bool:
    """Whether flock failed because the file system has no locks."""
    return error.errno in NO_LOCKS


def no_locks(folder: Path) -> str:
    """The sentence for a person whose folder has none."""
    return (
        f"The file system of {folder} has no locks; a file in it says which process works there. Do not work on it "
        "from two machines at once."
    )


def try_flock(descriptor: int, *, shared: bool = False) -> bool:
    """Take a lock of the operating system without waiting; False when another process holds it.

    Raises:
        OSError: it cannot be locked; see :func:`has_none`.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def marker_of(lock: Path) -> Path:
    """The file that stands in for a lock: ``lock.holder`` for ``lock``."""
    return lock.with_name(lock.name + ".holder")


def take_marker(lock: Path) -> bool:
    """Hold a lock by its marker; False when another process does.

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
        time.sleep(_SETTLE_SECONDS)  # another one may have found the same dead holder, and have removed ours for it
        return _content(marker) == mine
    return False


def marker_holder(lock: Path) -> int | None:
    """The process that holds a lock by its marker; None when there is none, or it is gone. -1: on another machine."""
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
    """Let go of a lock that is held by its marker."""
    with contextlib.suppress(OSError):
        marker_of(lock).unlink()


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _machine() -> str:
    """This machine since it was started; process ids mean nothing on another."""
    boot = _content(Path("/proc/sys/kernel/random/boot_id")) or ""
    return f"{platform.node()} {boot.strip()}"


def _began(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None when it is gone or a zombie. Process ids are reused."""
    status = _content(Path(f"/proc/{pid}/stat"))
    if status is not None:
        fields = status.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    try:
        os.kill(pid, 0)
    except OSError as error:
        return "unknown" if error.errno == errno.EPERM else None
    return "unknown"  # a system without /proc
