"""Rich's console for programs whose reader may close early (``| head -1``)."""

from __future__ import annotations

import threading

import rich.console

from engine.cli import streams


class Console(rich.console.Console):
    """A console that raises if its reader has closed; rich's own ends the process with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Called by rich where a write found no reader.

        Raises:
            BrokenPipeError: the reader has gone. Only in the main thread: rich's drawing thread has no caller to raise
                to.
        """
        self.quiet = True
        if threading.current_thread() is threading.main_thread():
            raise BrokenPipeError
        streams.silence()
