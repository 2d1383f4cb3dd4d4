"""Requests to a phase: to stop, to pause, to continue; and the loss of its supervisor.

The supervisor sends signals (SIGTERM stop, SIGUSR1 pause, SIGUSR2 continue); the phase looks at :class:`PhaseControl`
between two steps, where its state is on disk or can be written there. No step is interrupted.

The ranks of a training receive their signals at different moments; they agree before they act (:meth:`agreeing`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from engine.errors import Stopped

_STOP, _PAUSE = 1, 2


def _known(*names: str) -> tuple[signal.Signals, ...]:
    """Signals of this system: on Windows, where a run is refused and its help is not, some are missing."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


ENDING_SIGNALS = _known("SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGALRM")
"""Signals that ask to end and mean nothing else: a limit of processor time (``ulimit -t``) warns by XCPU."""

PAUSING_SIGNALS = _known("SIGUSR1", "SIGUSR2")
"""A supervisor's words to a phase: pause, and continue."""


class PhaseControl:
    """Requests to this phase so far.

    One that is made without arguments never stops anything.

    Args:
        parent: pid of the supervisor; a phase whose parent is another one has been left alone, and stops.
        on_pause: called with True when a pause begins and False when it ends.
    """

    def __init__(self, parent: int | None = None, on_pause: Callable[[bool], None] = lambda paused: None) -> None:
        self._parent = parent
        self._on_pause = on_pause
        self._stop = False
        self._paused = False
        self._ask: Callable[[int], int] | None = None
        self._agreed: int | None = None
        self.paused_seconds = 0.0

    @classmethod
    def listening(cls, parent: int, on_pause: Callable[[bool], None]) -> PhaseControl:
        """One that hears the supervisor's signals; for the main thread of a phase's process."""
        control = cls(parent, on_pause)
        for number in (*ENDING_SIGNALS, *PAUSING_SIGNALS):
            signal.signal(number, control._heard)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the supervisor's to answer
        return control

    @contextlib.contextmanager
    def agreeing(self, ask: Callable[[int], int]) -> Iterator[None]:
        """Within this, do what any rank was asked to; every rank has to look at the same places.

        Args:
            ask: given this rank's requests, returns those of all ranks, as bits.
        """
        self._ask = ask
        try:
            yield
        finally:
            self._ask = self._agreed = None

    @property
    def stopping(self) -> bool:
        """Return whether the phase has to end at its next safe point; it may write a checkpoint first."""
        if self._ask is not None and self._agreed is None:
            self._agreed = self._requests()  # the safe point that follows acts on the same answer
        return bool((self._requests() if self._agreed is None else self._agreed) & _STOP)

    def safe_point(self) -> None:
        """Wait while paused, then continue.

        Raises:
            Stopped: the user asked to stop, or the supervisor is gone.
        """
        requests = self._requests() if self._agreed is None else self._agreed
        self._agreed = None
        if requests == _PAUSE:
            began = time.monotonic()
            self._on_pause(True)
            while requests == _PAUSE:
                time.sleep(0.05)
                requests = self._requests()
            self.paused_seconds += time.monotonic() - began
            self._on_pause(False)
        if requests & _STOP:
            raise Stopped("The phase stopped as requested.", "", "Resume the run to continue.")

    def _requests(self) -> int:
        own = _STOP * self._has_to_stop() | _PAUSE * self._paused
        return own if self._ask is None else self._ask(own)

    def _has_to_stop(self) -> bool:
        orphaned = self._parent is not None and os.getppid() != self._parent
        return self._stop or orphaned

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            self._paused = number == signal.SIGUSR1
        else:
            self._stop = True
