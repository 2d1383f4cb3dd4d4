"""Ends the program in order when the system asks it to end, and leaves the terminal as it was.

Textual 8.2.8 handles no signals: the default action would leave the alternate screen and mouse reporting on. A closed
terminal takes no more codes, and writing them takes seconds; then the default action ends the program at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from engine.channel.control import ENDING_SIGNALS, PAUSING_SIGNALS

if TYPE_CHECKING:
    from textual.app import App


def end_in_order(app: App[int]) -> None:
    """Leave the app at each signal that would end the process; those that ``nohup`` has set to be ignored stay so.

    They are heard by Python's own handlers, not by the event loop's: it may wait for a terminal that takes no more.
    """
    if app.is_headless:
        return
    loop = asyncio.get_running_loop()
    for number in (*ENDING_SIGNALS, *PAUSING_SIGNALS):
        with contextlib.suppress(ValueError):  # not the main thread
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda heard, _: _heard(app, loop, heard))


def _heard(app: App[int], loop: asyncio.AbstractEventLoop, number: int) -> None:
    signal.signal(number, signal.SIG_DFL)  # the second one ends the program whatever it does
    if _terminal_is_open() and not loop.is_closed():
        loop.call_soon_threadsafe(app.exit, 0)
    else:
        os.kill(os.getpid(), number)


def _terminal_is_open() -> bool:
    try:
        return os.isatty(sys.__stdin__.fileno()) if sys.__stdin__ is not None else False
    except (OSError, ValueError):  # closed
        return False
