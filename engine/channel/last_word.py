"""A pipe that reports a run's final error as well as the events: a full disk cannot store the error.

The front end creates the pipe and keeps its reading end; supervisor and phases inherit the writing end, and write each
``error`` event there too. Writers never block: a pipe's buffer is larger than a run's errors.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from typing import Any

VARIABLE = "TINYDISTILL_LAST_WORD"
"""Names the descriptor of the writing end to the processes that inherit it."""


class LastWord:
    """The reading end, in the process that started a run."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)

    def started(self) -> None:
        """The child has its copy of the writing end."""
        os.close(self.writing)

    def said(self) -> dict[str, Any] | None:
        """The run's last error; None when there was none. Ask once, at the end."""
        content = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._reading, 1 << 16):
                content += part
        os.close(self._reading)
        told = None
        for line in content.splitlines():
            with contextlib.suppress(ValueError):
                told = json.loads(line)
        return told if isinstance(told, dict) else None


def inherited() -> int | None:
    """The writing end that this process was given; None when it was given none."""
    with contextlib.suppress(KeyError, ValueError, OSError):
        descriptor = int(os.environ[VARIABLE])
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return descriptor
    return None


def say(error: Mapping[str, Any]) -> None:
    """Send an ``error`` event to the process that started this run; do nothing if it has ended."""
    descriptor = inherited()
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(descriptor, json.dumps(error, default=str).encode() + b"\n")
