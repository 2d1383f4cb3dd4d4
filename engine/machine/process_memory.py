"""Memory that a process and its descendants hold, in main memory and on GPUs, as the system and the driver report it.

No function raises. Knows nothing of runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self


def memory_of_tree(pid: int) -> int:
    """Anonymous memory of a process and its descendants, in bytes; 0 when it is gone.

    Anonymous memory is what other programs cannot have. File pages (mapped libraries and weights) are left out: the
    kernel takes them back when memory is short.
    """
    if not sys.platform.startswith("linux"):
        return _memory_of_tree_by_psutil(pid)
    return sum(_anonymous_bytes(process) for process in _tree(pid))


def device_bytes(pid: int) -> int | None:
    """GPU memory that a process holds on all GPUs together, its CUDA context included; None where that is not reported.

    In a container the driver may list other process ids than are known here, and on Windows and under WSL it lists the
    process without its memory: both are unknown, not nothing.
    """
    try:
        import pynvml
    except ImportError:
        return None
    total = None
    with contextlib.suppress(pynvml.NVMLError, OSError):
        pynvml.nvmlInit()
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                    if process.pid == pid and process.usedGpuMemory is not None:
                        total = (total or 0) + int(process.usedGpuMemory)
        finally:
            pynvml.nvmlShutdown()
    return total


_BEFORE_EXEC_SECONDS = 1.0


class PeakMemory:
    """Samples :func:`memory_of_tree` in a thread and keeps the highest value.

    Use as a context manager around the life of the process; ``peak_bytes`` may be read at any time.
    """

    def __init__(self, pid: int, interval_seconds: float = 0.02) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._interval_seconds = interval_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, memory_of_tree(self._pid))
            if self._done.wait(self._interval_seconds):
                return


def _anonymous_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):  # gone since it was listed
        pass
    return 0


def _tree(pid: int) -> list[int]:
    """The process and its descendants, as far as they can be seen."""
    found, waiting = [], [pid]
    parents: dict[int, list[int]] | None = None
    while waiting:
        process = waiting.pop()
        found.append(process)
        children = _children(process)
        if children is None:  # a kernel without CONFIG_PROC_CHILDREN
            if parents is None:
                parents = _children_of_all()
            children = parents.get(process, [])
        waiting += [child for child in children if not _shares_memory(child, process)]
    return found


def _shares_memory(child: int, parent: int) -> bool:
    """Whether a child has its parent's memory still: between fork() and exec() it would be counted twice.

    It then has the parent's command line, and was started a moment ago; a worker that continues as a copy stays longer.
    """
    try:
        with open(f"/proc/{child}/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        age_seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return age_seconds < _BEFORE_EXEC_SECONDS and _command_line(child) == _command_line(parent)
    except (OSError, ValueError, IndexError):  # gone since it was listed
        return True


def _command_line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def _children(pid: int) -> list[int] | None:
    """Children of every thread of a process; None when the kernel does not list them."""
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                children += [int(word) for word in file.read().split()]
    except FileNotFoundError:
        return [] if not os.path.exists(f"/proc/{pid}") else None
    except (OSError, ValueError):
        return []
    return children


def _children_of_all() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
            # "pid (name) state ppid": the name may hold spaces and brackets, so the last bracket counts
            parent = int(file.read().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    return children


def _memory_of_tree_by_psutil(pid: int) -> int:
    try:
        import psutil
    except ImportError:
        return 0
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += _bytes_by_psutil(member, psutil)
    return total


def _bytes_by_psutil(process: Any, psutil: Any) -> int:
    """Return the free memory without the process; macOS shows others' to root only, and then all it has counts."""
    try:
        return int(process.memory_full_info().uss)
    except (psutil.AccessDenied, AttributeError):
        return int(process.memory_info().rss)
