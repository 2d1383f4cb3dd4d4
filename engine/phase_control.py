"""How a phase hears the person: asked to stop, asked to pause, or left alone by its supervisor.

The supervisor sends signals (SIGTERM stop, SIGUSR1 pause, SIGUSR2 go on); the phase looks at :class:`PhaseControl`
between two steps, where everything it knows is on disk or can be written there. Nothing is interrupted in the middle.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from engine.errors import Stopped


class PhaseControl:
    """Requests to this phase so far.

    Args:
        parent: pid of the supervisor; a phase whose parent is another one has been left alone, and stops.
        on_pause: called with True when a pause begins and False when it ends.
    """

    def __init__(self, parent: int | None = None, on_pause: Callable[[bool], None] = lambda paused: None) -> None:
        self._parent = parent
        self._on_pause = on_pause
        self._stop = False
        self._paused = False
        self.paused_seconds = 0.0

    @classmethod
    def inert(cls) -> PhaseControl:
        """One that never stops anything."""
        return cls()

    @classmethod
    def listening(cls, parent: int, on_pause: Callable[[bool], None]) -> PhaseControl:
        """One that hears the supervisor's signals; for the main thread of a phase's process."""
        control = cls(parent, on_pause)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, control._heard)
        signal.signal(signal.SIGUSR1, control._heard)
        signal.signal(signal.SIGUSR2, control._heard)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the supervisor's to answer
        return control

    @property
    def stopping(self) -> bool:
        """Whether the phase has to end at its next safe point; it may write a checkpoint first."""
        return self._has_to_stop()

    def safe_point(self) -> None:
        """Wait while paused, then go on.

        Raises:
            Stopped: the person asked to stop, or the supervisor is gone.
        """
        if self._paused and not self._has_to_stop():
            began = time.monotonic()
            self._on_pause(True)
            while self._paused and not self._has_to_stop():
                time.sleep(0.05)
            self.paused_seconds += time.monotonic() - began
            self._on_pause(False)
        if self._has_to_stop():
            raise Stopped("The phase stopped as requested.", "", "Resume the run to go on.")

    def _has_to_stop(self) -> bool:
        orphaned = self._parent is not None and os.getppid() != self._parent
        return self._stop or orphaned

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            self._paused = number == signal.SIGUSR1
        else:
            self._stop = True
