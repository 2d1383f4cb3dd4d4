"""Memory that other runs on this machine have planned and not taken yet.

Two runs that are planned one after the other would both count the same free memory. A live run's prediction is in its
run.json; memory that it already holds is not part of the system's free memory.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.disk import file_lock
from engine.machine.process_memory import memory_of_tree


@dataclass(frozen=True)
class LiveRun:
    """An active run.

    Attributes:
        name: of its folder.
        device: that it computes on.
        reserved_bytes: main memory that it will still take.
        device_reserved_bytes: memory of its GPU that it was planned to take; 0 on the CPU.
    """

    name: str
    device: str
    reserved_bytes: int
    device_reserved_bytes: int


def live_runs(folder: Path, elsewhere: Sequence[Path] = ()) -> list[LiveRun]:
    """Return runs whose supervisor is alive; unreadable folders are skipped.

    Args:
        folder: of runs.
        elsewhere: folders of single runs; some may be in the other folder, or gone.
    """
    runs = {run.absolute() for run in elsewhere}
    with contextlib.suppress(OSError):
        runs |= {entry.absolute() for entry in folder.iterdir()}
    found = []
    for run in sorted(runs):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            pid = _holder(run / "lock") if (run / "lock").is_file() else None
            if pid is not None:
                found.append(_live_run(run, pid))
    return found


def _live_run(run: Path, pid: int) -> LiveRun:
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    phases = [phase for phase in info["predicted"].values() if isinstance(phase, dict)]
    device = str(info["settings"].get("device") or "cpu")
    ram = max(int(phase.get("ram_bytes") or phase["peak_bytes"]) for phase in phases)
    on_device = 0 if device == "cpu" else max(int(phase["peak_bytes"]) for phase in phases)
    return LiveRun(run.name, device, max(0, ram - memory_of_tree(pid)), on_device)


def _holder(lock: Path) -> int | None:
    """Return the process that holds a run's lock, or None. The lock is tried, because pids are reused."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if file_lock.try_flock(descriptor, shared=True):
            return None
        with contextlib.suppress(OSError, ValueError):
            return int(os.pread(descriptor, 32, 0))
    except OSError as error:
        pid = file_lock.marker_holder(lock) if file_lock.has_none(error) else None
        return None if pid == -1 else pid  # the memory of another machine does not count
    finally:
        os.close(descriptor)
    return None
