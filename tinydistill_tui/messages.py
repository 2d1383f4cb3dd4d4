"""Messages between screens, widgets and workers."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message

from tinydistill_tui.view.run_view import RunView


@dataclass
class RunUpdated(Message):
    """The watcher has read on; only the newest counts.

    Attributes:
        view: everything the events say so far.
        live: whether a supervisor holds the run.
        read_share: how much of the events file is read, 1 when all of it.
    """

    view: RunView
    live: bool
    read_share: float

    def can_replace(self, message: Message) -> bool:
        """A newer view replaces an older one that was not shown yet."""
        return isinstance(message, RunUpdated)


@dataclass
class RunGone(Message):
    """The run's folder is not there any more, or cannot be read.

    Attributes:
        sentence: what happened and what to do.
    """

    sentence: str
