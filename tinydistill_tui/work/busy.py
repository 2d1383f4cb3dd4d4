"""Whether other programs keep this machine busy while a run is going, so that it is slower than planned."""

from __future__ import annotations

import os

_MOST_FREE_SHARE = 0.5  # of the cores that others may keep busy before it is worth a word


def load() -> float:
    """Processes that want to run, on the mean of the last minute; 0 where the system does not report it."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0


def cores() -> int:
    """Cores of the machine, for the load is the whole machine's."""
    return os.cpu_count() or 1


def words(load_now: float, core_count: int, own: int) -> str:
    """Return a warning about other load; empty if there is none.

    Args:
        load_now: processes that want to run.
        core_count: of the machine.
        own: threads that the run itself keeps busy.
    """
    others = load_now - min(own, core_count)
    if others < max(1.0, _MOST_FREE_SHARE * core_count):
        return ""
    shared = "one core" if core_count == 1 else f"{core_count} cores"
    count = round(others)
    busy = "a busy one shares" if count == 1 else f"about {count} busy ones share"
    return f"Other programs slow this run: {busy} its {shared}."
