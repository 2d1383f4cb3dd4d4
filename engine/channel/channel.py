"""The channel of a phase: all that its work needs of the run around it.

The work reports through it, asks it whether to continue, and lets it act when memory is short. So a loop over waves or
steps takes one argument, and knows neither files of events, nor signals, nor how memory is watched.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Protocol

from engine.channel.control import PhaseControl
from engine.channel.events import EventWriter
from engine.channel.pressure import Relief, Saver
from engine.machine.memory_watch import MemoryWatch

PROGRESS_SECONDS = 0.5
"""Time between two ``progress`` events."""


class Ranks(Protocol):
    """The ranks that do some work together: :class:`engine.student.world.World`."""

    def agree(self, requests: int) -> int:
        """Return the requests, one bit each, of all ranks together."""
        ...


class Channel:
    """The link of a phase's work to its run.

    Args:
        events: receives what is reported.
        control: has the requests to stop and to pause; without one there are none.
    """

    def __init__(self, events: EventWriter, control: PhaseControl | None = None) -> None:
        self._events = events
        self._control = control or PhaseControl()
        self._relief: Relief | None = None
        self._next_progress = float("-inf")

    def beside(self, events: EventWriter) -> Channel:
        """Return a channel with the same requests that reports to other events."""
        return Channel(events, self._control)

    def write(self, kind: str, **fields: Any) -> None:
        """Write an event; see :meth:`engine.channel.events.EventWriter.write`."""
        self._events.write(kind, **fields)

    def log(self, level: str, message: str, code: str | None = None) -> None:
        """Write a sentence for a user; ``level`` is debug, info, warning or error."""
        self._events.log(level, message, code)

    def progress(
        self, done: int, total: int, unit: str, *, rate: float | None = None, seconds: float = PROGRESS_SECONDS
    ) -> None:
        """Report how far the phase is, and how long the rest takes at this rate.

        Args:
            done: units so far.
            total: units in all.
            unit: ``rows``, ``tokens`` or ``steps``.
            rate: units per second.
            seconds: least time since the last report, or this one is left out; 0 always reports.
        """
        now = time.monotonic()
        if seconds and now < self._next_progress:
            return
        self._next_progress = now + seconds
        left = (total - done) / rate if rate else None
        self._events.write("progress", done=done, total=total, unit=unit, rate=rate, eta_seconds=left)

    @property
    def paused_seconds(self) -> float:
        """How long the phase has been paused so far."""
        return self._control.paused_seconds

    @property
    def stopping(self) -> bool:
        """Return whether the phase has to end at its next safe point; it may write a checkpoint first."""
        return self._control.stopping

    @property
    def memory_is_short(self) -> bool:
        """Return whether memory was short at the last safe point of :meth:`saving_memory`."""
        return self._relief is not None and self._relief.is_short

    def safe_point(self) -> None:
        """Wait while the run is paused, and act on short memory. The phase calls this where its state can be kept.

        Raises:
            Stopped: the user asked to stop, or the supervisor is gone.
        """
        self._control.safe_point()
        if self._relief is not None:
            self._relief.look()

    @contextlib.contextmanager
    def agreeing(self, ranks: Ranks) -> Iterator[None]:
        """Within this, do what any rank was asked to; every rank has to reach the same safe points.

        Args:
            ranks: of this work.
        """
        with self._control.agreeing(ranks.agree):
            yield

    @contextlib.contextmanager
    def saving_memory(self, saver: Saver, *, also: str = "", watch: MemoryWatch | None = None) -> Iterator[None]:
        """Within this, a safe point lets the saver take less memory while memory is short.

        Args:
            saver: the model that the work is done with.
            also: what the caller does beside it while :attr:`memory_is_short`, in words.
            watch: knows when memory is short; None makes one for this machine.
        """
        self._relief = Relief(saver, self._events, also=also, watch=watch)
        self._relief.look()
        try:
            yield
        finally:
            self._relief = None
