"""Checkpoints that are written while the next step computes.

A step reads the weights and the moments until its update. Until then a thread writes them as they are, so that no copy
of them is needed; the update waits for the thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.errors import Stopped


class CheckpointWriter:
    """A thread that writes one checkpoint at a time; a context manager that ends when the last one is on the disk.

    Args:
        on_written: called with the step, the folder and the bytes of each checkpoint, in the thread that waits for it.

    Attributes:
        waited_seconds: spent waiting so far.
    """

    def __init__(self, on_written: Callable[[int, Path, int], None]) -> None:
        self.waited_seconds = 0.0
        self._on_written = on_written
        self._writing: _Writing | None = None

    def begin(self, step: int, write: Callable[[], tuple[Path, int]]) -> None:
        """Begin to write; nothing that ``write`` reads may change until :meth:`wait` returns."""
        self.wait()
        self._writing = _Writing(step, write)
        self._writing.start()

    def wait(self) -> None:
        """Wait for the checkpoint that was begun, if there is one, and report it.

        Raises:
            DiskFull, OSError: errors of the thread.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        began = time.monotonic()
        writing.join()
        self.waited_seconds += time.monotonic() - began
        if isinstance(writing.outcome, BaseException):
            raise writing.outcome
        self._on_written(writing.step, *writing.outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, Stopped):  # which says that a checkpoint was written
            self.wait()
        elif self._writing is not None:
            self._writing.join()


class _Writing(threading.Thread):
    outcome: tuple[Path, int] | BaseException

    def __init__(self, step: int, write: Callable[[], tuple[Path, int]]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.step = step
        self._write = write

    def run(self) -> None:
        try:
            self.outcome = self._write()
        except BaseException as error:  # the waiting thread raises it
            self.outcome = error
