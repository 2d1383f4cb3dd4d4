"""Display of a run without the wizard: a progress bar, lines of text, or the events themselves.

It reads the same events as the wizard and holds no state of the run, which does not depend on it. Lines are used
without a terminal, for ``TERM=dumb``, for ``ACCESSIBLE=1`` and for ``--plain``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any, Protocol

from engine.channel.events import Event, Tail
from engine.channel.words import budgeted, headline_of
from engine.format import format_bytes, format_duration, format_rate
from engine.phase_kinds import phase_verb

_POLL_SECONDS = 0.1
_LINE_SECONDS = 10.0
_LINE_SHARE = 0.05


class View(Protocol):
    """Display of a run's events."""

    def show(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def follow(view: View, *, alive: Callable[[], bool], tail: Tail) -> int:
    """Show a run's events until its supervisor has ended.

    A run that was stopped and resumed has an end in the middle of its events: the last one counts, once no supervisor
    is there any more.

    Args:
        view: shows the events.
        alive: whether the supervisor is still there.
        tail: where in the events to begin.

    Returns:
        The run's exit code; 4 if the supervisor ended without a final event.
    """
    exit_code = 4
    try:
        while True:
            living = alive()
            for event in tail.read():
                view.show(event)
                if event["kind"] == "run_finished":
                    exit_code = int(event.get("exit_code", 4))
                elif event["kind"] in ("run_started", "run_resumed"):
                    exit_code = 4
            if not living:
                return exit_code
            time.sleep(_POLL_SECONDS)
    finally:
        view.close()


def wants_lines(plain: bool) -> str | None:
    """Why lines of text are shown instead of a bar; None when a bar is right."""
    if plain:
        return "as asked by --plain"
    if os.environ.get("ACCESSIBLE"):
        return "since ACCESSIBLE is set"
    if os.environ.get("TERM") == "dumb":
        return "since TERM is dumb"
    if not sys.stdout.isatty():
        return "since the output is not a terminal"
    return None


class JsonView:
    """Events as they are, one a line, on standard output."""

    def show(self, event: Event) -> None:
        """Print the event."""
        sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def close(self) -> None:
        """Nothing to put back."""


class LineView:
    """One line every ten seconds or five per cent; what is worth a line of its own gets one at once."""

    def __init__(self) -> None:
        self._last = 0.0
        self._last_share = 0.0
        self._phase = ""
        self._memory: Event = {}

    def show(self, event: Event) -> None:
        """Print what is worth a line."""
        kind = event["kind"]
        if kind == "memory":
            self._memory = event
        elif kind == "phase_started":
            self._phase, self._last_share, self._last = event["phase"], 0.0, time.monotonic()
            _say(f"{phase_verb(self._phase)} …")
        elif kind == "progress" and event.get("total"):
            share = event["done"] / event["total"]
            if time.monotonic() - self._last >= _LINE_SECONDS or share - self._last_share >= _LINE_SHARE:
                self._last, self._last_share = time.monotonic(), share
                _say(_progress_line(self._phase, event, self._memory))
        elif line := headline_of(event):
            _say(line)

    def close(self) -> None:
        """Nothing to put back."""


def _say(line: str) -> None:
    """Print a line; a terminal would break a long one inside a word."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
    print(line, flush=True)


class BarView:
    """A rich progress bar for each phase; notes above it."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        from engine.cli.console import Console

        self._console = Console()
        self._progress = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>4.0f} %"),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        self._progress.start()
        self._task: Any = None
        self._memory: Event = {}

    def show(self, event: Event) -> None:
        """Move the bar, or print a note above it."""
        kind = event["kind"]
        if kind == "memory":
            self._memory = event
        elif kind == "phase_started":
            word = phase_verb(str(event["phase"]))
            self._task = self._progress.add_task(word, total=None, note="")
        elif kind == "progress" and self._task is not None:
            self._progress.update(
                self._task, completed=event["done"], total=event["total"], note=_note(event, self._memory)
            )
        elif kind == "phase_finished" and self._task is not None:
            note = f"{format_duration(event['seconds'])}, peak {format_bytes(budgeted(event, 'peak_bytes'))}"
            self._progress.update(self._task, total=1, completed=1, note=note)
        elif line := headline_of(event):
            self._progress.console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the bar where it is and the cursor below it."""
        self._progress.stop()


def _progress_line(phase: str, event: Event, memory: Event) -> str:
    word = phase_verb(phase)
    return f"{word} {event['done'] / event['total']:.0%} · {_note(event, memory)}"


def _note(event: Event, memory: Event) -> str:
    parts = []
    if event.get("rate"):
        parts.append(format_rate(event["rate"], event.get("unit", "")))
    if event.get("eta_seconds") is not None:
        parts.append(f"{format_duration(event['eta_seconds'])} left")
    if peak := budgeted(memory, "peak_bytes"):
        budget = f" of {format_bytes(memory['budget_bytes'])}" if memory.get("budget_bytes") else ""
        parts.append(f"peak {format_bytes(peak)}{budget}")
    return " · ".join(parts)
