"""Lends the terminal to another program, such as a pager, and takes it back whatever happens there.

Textual 8.2.8 takes the terminal back only where nothing was raised meanwhile, and Python 3.11 turns Ctrl+C into the end
of the event loop's main task: a pager that is not there, or a Ctrl+C in one that is, would leave no screen behind.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from textual.app import SuspendNotSupported

if TYPE_CHECKING:
    from textual.app import App


def lend(app: App[int], act: Callable[[], object]) -> str:
    """Do something with the terminal while the screen is away.

    Args:
        app: the app, whose screen is away meanwhile.
        act: runs a program in the foreground; Ctrl+C ends it and not the app.

    Returns:
        Why it could not be done; empty when it was.
    """
    problem = ""
    try:
        with app.suspend(), _own_interrupts():
            try:
                act()
            except KeyboardInterrupt:
                pass
            except OSError as error:  # no such program, no such folder
                problem = error.strerror or str(error)
    except SuspendNotSupported:
        return "this terminal cannot be shared"
    return problem


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Let Ctrl+C raise KeyboardInterrupt here; a child process begins with the system's own handling."""
    try:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
