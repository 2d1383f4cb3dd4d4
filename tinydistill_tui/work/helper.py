"""Work for a process of its own, so that the screens load nothing of it and it can be ended at any time."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from engine.machine import safe_child

_POLL_SECONDS = 0.1
_SECONDS_TO_END = 2.0


@dataclass(frozen=True)
class HelperOutput:
    """Result of a process.

    Attributes:
        text: its standard output.
        problem: what went wrong, its last line on standard error; empty when nothing did.
    """

    text: str
    problem: str


def ask(command: Sequence[str], text: str, cancelled: Callable[[], bool]) -> HelperOutput | None:
    """Run a program and wait for its end.

    Args:
        command: such as :func:`engine.machine.safe_child.command` makes.
        text: its standard input.
        cancelled: asked some times a second; True ends the process.

    Returns:
        None when it was cancelled.
    """
    process = subprocess.Popen(
        command,
        env=safe_child.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl+C in the terminal is for the screens
    )
    # `communicate` with a timeout forgets the rest of its input: its second call no longer looks at standard input.
    stdin, process.stdin = process.stdin, None
    threading.Thread(target=_give, args=(stdin, text), daemon=True).start()
    with process:
        while True:
            try:
                out, complaints = process.communicate(timeout=_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if cancelled():
                    _end(process)
                    return None
    if process.returncode == 0:
        return HelperOutput(out, "")
    lines = complaints.strip().splitlines()
    return HelperOutput(out, lines[-1] if lines else f"It ended with exit code {process.returncode} without a message.")


def _give(stream: IO[str] | None, text: str) -> None:
    assert stream is not None
    with contextlib.suppress(OSError), stream:  # a process may end before it has read all
        stream.write(text)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
