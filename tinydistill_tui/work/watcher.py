"""The thread that reads a run's events and hands each new view to a screen. It touches no widget."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from textual.message import Message

from engine.channel.events import Tail
from tinydistill_tui.messages import RunGone, RunUpdated
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.view.watch import fold
from tinydistill_tui.work import runs

POLL_SECONDS = 0.25
_PIECE_BYTES = 256 * 2**10  # a piece is folded in some ten milliseconds, so the screen answers meanwhile
_LEAST_SECONDS_BETWEEN_VIEWS = 0.25
_MOST_SECONDS_BETWEEN_VIEWS = 1.0  # clocks move on, and a run may be lost without a word


def watch(path: Path, post: Callable[[Message], object], cancelled: Callable[[], bool]) -> None:
    """Read a run's events until ``cancelled``, from the first to whatever is still to come.

    Args:
        path: the run's folder.
        post: takes messages; called from this thread.
        cancelled: whether to end.
    """
    events_path = path / "events.jsonl"
    tail, view = Tail(events_path), RunView(name=path.name)
    inode, shown_at, gone = 0, 0.0, False
    live = runs.is_live(path)
    while not cancelled():
        status = _stat(events_path)
        if status is not None and ((inode and status.st_ino != inode) or status.st_size < tail.offset):
            tail, view = Tail(events_path), RunView(name=path.name)  # another file: start again
        inode = status.st_ino if status is not None else inode
        events = tail.read(_PIECE_BYTES)
        if events or tail.bad_lines != view.bad_lines:
            view = replace(fold(view, events), bad_lines=tail.bad_lines)
        behind = tail.offset < tail.size
        now = time.monotonic()
        if not behind:
            live = runs.is_live(path)
        due = _LEAST_SECONDS_BETWEEN_VIEWS if events or behind else _MOST_SECONDS_BETWEEN_VIEWS
        if now - shown_at >= due or (events and not behind):
            shown_at = now
            if _stat(path / "run.json") is None:
                if not gone:
                    post(RunGone("Its folder is gone: moved, deleted, unmounted?"))
                gone = True
            else:
                gone = False
                share = tail.offset / tail.size if tail.size else 1.0
                post(RunUpdated(view, live, share))
        time.sleep(0.002 if behind else POLL_SECONDS)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
