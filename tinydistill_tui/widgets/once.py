"""A timer that fires once, and does so on a busy machine too."""

from __future__ import annotations

from collections.abc import Callable

from textual.message_pump import MessagePump
from textual.timer import Timer


def after(node: MessagePump, seconds: float, callback: Callable[[], object]) -> Timer:
    """Call a function once, ``seconds`` from now, unless the timer is stopped before.

    Textual 8.2's ``set_timer`` skips a tick whose moment is past when the timer's task begins to wait. A process that
    was held up for longer than the delay at that point, by another thread or another program, would then never be
    called at all: the only tick is the one that was skipped.
    """
    timer = node.set_timer(seconds, callback)
    timer._skip = False  # its task has not begun yet: it begins with the next turn of the event loop
    return timer
