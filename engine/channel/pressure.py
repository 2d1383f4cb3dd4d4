"""Relief of a phase while memory is short: each worker registers memory that it can free, and takes it back later.

Nothing of it changes a record (but for the rounding of shorter waves) or a student; it costs time. The phase looks
between two pieces of work.
"""

from __future__ import annotations

from typing import Protocol

from engine.channel.events import EventWriter
from engine.format import format_bytes
from engine.machine.memory_watch import MemoryWatch


class Saver(Protocol):
    """A worker that can use less memory for a while.

    Attributes:
        growth_bytes: what it will take beyond what it holds now.
        saved_bytes: what it would take again when it need not save any more.
    """

    @property
    def growth_bytes(self) -> int: ...  # noqa: D102

    @property
    def saved_bytes(self) -> int: ...  # noqa: D102

    def save_memory(self, on: bool) -> str:
        """Do with less from here on, or no longer; what that means, in words, empty when nothing."""
        ...


class Relief:
    """Looks at memory, and acts.

    Args:
        saver: does with less.
        events: receives what is done and why.
        also: what the caller does beside it while ``is_short``, in words.
        watch: knows when memory is short; None makes one for this machine.
    """

    def __init__(self, saver: Saver, events: EventWriter, *, also: str = "", watch: MemoryWatch | None = None) -> None:
        self._saver = saver
        self._events = events
        self._also = also
        self._watch = watch or MemoryWatch()

    @property
    def is_short(self) -> bool:
        """Return whether memory was short when it was looked at last."""
        return self._watch.is_short

    def look(self) -> None:
        """Look, and act on a change."""
        watch, saver = self._watch, self._saver
        if not watch.look(growth_bytes=saver.growth_bytes, saved_bytes=saver.saved_bytes):
            return
        done = saver.save_memory(watch.is_short)
        free = format_bytes(watch.available_bytes)
        if watch.is_short:
            said = "; ".join(part for part in (done, self._also) if part) or "no more memory can be saved"
            said = f"Memory is short: {free} are free. {said[0].upper()}{said[1:]}."
            self._events.log("warning", said, "memory-short")
        else:
            self._events.log("info", f"Memory is free again: {free}. The phase continues as planned.", "memory-room")
