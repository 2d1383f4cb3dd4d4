"""Keeps what is drawn as large as the window, and whole.

Textual 8.2.8 learns of a new size by a signal. A busy machine can lose the signal, and the old picture stays. Textual
also ignores a signal with the size that it already has, but a window that was resized and resized back has lost a part
of the picture. So this module checks the terminal's size periodically.

A screen that has taken a size sends itself another notice of it. On a busy machine, two notices of different sizes can
be on their way at once; then each of them causes the next one, and the screen changes between two sizes for ever and
hears no key. So a screen takes no size but the app's newest.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from textual.app import ScreenStackError
from textual.events import Resize
from textual.geometry import Size
from textual.screen import Screen

if TYPE_CHECKING:
    from textual.app import App

LOOK_SECONDS = 1.0
WIDTHS = [(0, "-narrow"), (80, "-normal"), (120, "-wide")]
HEIGHTS = [(0, "-tiny"), (12, "-short"), (24, "-tall"), (36, "-roomy")]
"""Columns and rows from which on every screen and box has a class, for the styles."""


def window_size() -> Size | None:
    """Columns and rows of the terminal; None if there is none, or if it does not report them."""
    for stream in (sys.__stdout__, sys.__stdin__):
        try:
            columns, rows = os.get_terminal_size(stream.fileno() if stream is not None else -1)
        except (OSError, ValueError):
            continue
        if columns > 0 and rows > 0:
            return Size(columns, rows)
    return None


def believe_the_terminal() -> None:
    """Forget COLUMNS and LINES if the terminal reports its size: as exported by a shell, they never change."""
    if window_size() is not None:
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)


def take_only_the_newest_size() -> None:
    """Let screens ignore a notice of a size that the app does not have any more; another one is on its way then."""
    original = Screen._on_resize
    if getattr(original, "takes_only_the_newest", False):
        return

    async def newest(self: Screen[Any], event: Resize) -> None:
        if event.size == self.app.size:
            await original(self, event)

    newest.takes_only_the_newest = True  # type: ignore[attr-defined]
    Screen._on_resize = newest  # type: ignore[method-assign]


def follow(app: App[int]) -> None:
    """Tell the app and its screen of a size that was missed; the screen itself too, for the app may know it already."""
    size = window_size()
    try:
        screen = app.screen
    except ScreenStackError:  # it is ending
        return
    if size is None or size == screen.outer_size:
        return
    for missed in (app, screen):
        missed.post_message(Resize(size, size))


def redraw_if_same(app: App[int], event: Resize) -> None:
    """Draw everything at a notice of a size that is known already: it was another one for a moment."""
    if event.size == app.size:
        try:
            app.screen.refresh()
        except ScreenStackError:
            return
