"""Detection of short memory, which a phase checks between two pieces of work, to act before the OOM killer.

The available memory is the minimum over the system and each container limit. The plan knew the free memory at the start
of the run; other programs may have started since, or an unknown limit applies. This file decides when memory is short;
the caller decides what to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.machine import hardware

# Short means: less is free than a sixteenth of all memory, and less than this. A container of 700 MB is short at 44 MB.
_MOST_RESERVE_BYTES = 256 * 2**20
_SHARE = 16
_SECONDS_BETWEEN_LOOKS = 0.1


class MemoryWatch:
    """Remembers whether memory was short, so that a state between short and roomy changes nothing.

    Args:
        total_bytes: all main memory; the machine's or the container's when not given.
        available_bytes: returns the memory that can be taken now.
        clock: in seconds.

    Attributes:
        reserve_bytes: memory is short when less than this is free.
        is_short: as of the last look.
    """

    def __init__(
        self,
        total_bytes: int | None = None,
        available_bytes: Callable[[], int] = hardware.available_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        total = hardware.memory_bytes() if total_bytes is None else total_bytes
        self.reserve_bytes = min(_MOST_RESERVE_BYTES, total // _SHARE)
        self.is_short = False
        self.available_bytes = total
        self._find_available = available_bytes
        self._clock = clock
        self._next_look = float("-inf")

    def look(self, *, growth_bytes: int = 0, saved_bytes: int = 0) -> bool:
        """Look, at most ten times a second, and say whether the answer has changed.

        Args:
            growth_bytes: what the caller is about to take; it must fit above the reserve.
            saved_bytes: what the caller would take again with room; that much more must be free before there is room.
        """
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + _SECONDS_BETWEEN_LOOKS
        self.available_bytes = self._find_available()
        before = self.is_short
        if before:
            self.is_short = self.available_bytes < 2 * self.reserve_bytes + saved_bytes
        else:
            self.is_short = self.available_bytes < self.reserve_bytes + growth_bytes
        return self.is_short != before
