"""Requests to a run: to stop, to pause, to continue.

They come through its ``control`` file, as signals, or by the end of the command that started it, and are passed to the
process of the phase as signals (:mod:`engine.channel.control`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from engine.channel.control import ENDING_SIGNALS, PAUSING_SIGNALS
from engine.channel.events import EventWriter, Tail
from engine.errors import Stopped
from engine.run.child import Child
from engine.run.crew import Crew

COMMANDS = ("stop", "pause", "resume")
STOPPING_SIGNALS = (signal.SIGINT, *ENDING_SIGNALS, *PAUSING_SIGNALS)
"""All of them stop a run in order: job schedulers warn by USR1 or USR2 before they kill, a lost terminal by HUP."""


def request(path: Path, command: str, by: str) -> None:
    """Ask the supervisor of a run to ``stop``, ``pause`` or ``resume``; it answers with ``control`` events."""
    line = json.dumps({"kind": "control", "command": command, "by": by, "time": time.time()}) + "\n"
    descriptor = os.open(path / "control", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class RunControl:
    """Requests to a run so far, for its supervisor.

    Args:
        path: of the ``control`` file; requests that are in it already were made to an earlier supervisor.
        events: receives an answer to each request.
        tied_to: the process with which the run ends; None for a run of its own.

    Attributes:
        stopping: whether the run has to end.
    """

    def __init__(self, path: Path, events: EventWriter, *, tied_to: int | None = None) -> None:
        self.stopping = False
        self._paused = False
        self._events = events
        self._tail = Tail(path, from_end=True)
        self._tied_to = tied_to
        self._child: Child | Crew | None = None

    def listen(self) -> None:
        """Hear signals; for the main thread of the supervisor's process."""
        for number in STOPPING_SIGNALS:
            signal.signal(number, self._heard)

    def look(self) -> None:
        """Take the requests that have arrived."""
        for line in self._tail.read():
            self._take(str(line.get("command")), str(line.get("by", "")))
        if self._tied_to is not None and os.getppid() != self._tied_to:
            self._tied_to = None
            self._take("stop", "the command that started the run has ended")

    @contextlib.contextmanager
    def sending_to(self, child: Child | Crew) -> Iterator[None]:
        """Within this, requests are passed to the process of a phase; that of an earlier pause is at once."""
        self._child = child
        if self._paused:
            child.send_signal(signal.SIGUSR1)
        try:
            yield
        finally:
            self._child = None

    def raise_if_stopped(self) -> None:
        """Do nothing while the run may continue.

        Raises:
            Stopped: the run has to end.
        """
        if self.stopping:
            raise Stopped("The run was stopped.")

    def _take(self, command: str, by: str) -> None:
        accepted = command in COMMANDS and not self.stopping
        self._events.write("control", command=command, by=by, accepted=accepted)
        if not accepted:
            return
        if command == "stop":
            self.stopping = True
            self._events.write("control", state="stopping")
            self._signal_child(signal.SIGTERM)
        elif command == "pause" and not self._paused:
            self._paused = True
            self._events.write("control", state="pausing")
            self._signal_child(signal.SIGUSR1)
        elif command == "resume" and self._paused:
            self._paused = False
            self._signal_child(signal.SIGUSR2)

    def _signal_child(self, number: int) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if not self.stopping:
            self._take("stop", signal.Signals(number).name)
