"""Rich's console for programs whose reader may close early (``| head -1``)."""

from __future__ import annotations

import threading

import rich.console

from engine.cli import streams

_NARROWEST = 20  # columns; a variable COLUMNS=0 would show nothing
_USUAL = 80


class Console(rich.console.Console):
    """A console that raises if its reader has closed; rich's own ends the process with exit code 1.

    A width that the environment gives and that nothing fits into is passed over.
    """

    @property
    def size(self) -> rich.console.ConsoleDimensions:
        """Columns and lines of the terminal, or of a usual one."""
        found = super().size
        return found if found.width >= _NARROWEST else rich.console.ConsoleDimensions(_USUAL, found.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

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
