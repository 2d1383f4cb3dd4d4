"""Texts of the run screen: its first line, the pinned notice, the sentence above the keys. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence

from textual.content import Content

from engine.format import format_count, format_duration
from tinydistill_tui.view.marks import MARK_STYLES, MARKS
from tinydistill_tui.view.run_view import Notice, RunView
from tinydistill_tui.view.state import RunState

_BESIDE_A_NOTICE = 22  # cells for its mark, its time, and the key

_WIDE = 110  # columns in which all of it has room

_VERDICTS = {
    "lost": ("Its process is gone: killed, power cut, or the disk was full. R resumes it.", "lost"),
    "stopped": ("Stopped. Everything is kept; R resumes it.", "stopped"),
    "failed": ("It failed. Completed work is kept; Enter says why, R tries again.", "wrong"),
    "done": ("Done. Enter shows the result.", "good"),
    "paused": ("Paused. It keeps its memory; Space continues.", "stopped"),
    "pausing": ("It pauses when the step that it is at is done.", "look"),
    "stopping": ("It stops when the step that it is at is done and stored; R resumes it then.", "look"),
    "reading": ("Reading what happened so far. Keys work meanwhile.", ""),
}


def title(name: str, view: RunView, state: RunState, now: float, *, width: int, whole: bool) -> Content:
    """Name, state, time and what is left.

    Args:
        name: of the run's folder.
        view: what the events say.
        state: how it stands.
        now: Unix seconds.
        width: cells there are; in few of them the state comes before the name.
        whole: whether all events are read, so that times can be told.
    """
    named = (name, "bold")
    word = (f"{MARKS[state.mark]} {state.word}", f"bold {MARK_STYLES[state.mark]}")
    roomy = len(named[0]) + len(word[0]) + 4 <= width
    parts: list[tuple[str, str]] = [named, ("  ", ""), word] if roomy else [word, ("  ", ""), named]
    if view.session_started is not None and whole:
        parts.append((f"  {format_duration(view.elapsed_seconds(now))} elapsed", ""))
    phase = view.current
    if state.live and phase is not None and phase.eta_seconds is not None and whole:
        parts.append((f" · about {format_duration(phase.eta_seconds)} left", ""))
    return Content.assemble(*parts)


def right_end(view: RunView, *, live: bool, width: int) -> str:
    """Return the right end of the first line: the share of the gap that is closed, once there is one.

    It is an estimate: on the way only some of the hold-out rows are looked at.
    """
    if view.bad_lines:
        return f"{format_count(view.bad_lines)} unreadable line{'s' if view.bad_lines > 1 else ''}"
    said = []
    if (share := view.gap_closed) is not None and view.finished is None:
        closed = f"gap {share:.0%} closed" if width < _WIDE else f"{share:.0%} of the gap closed"
        said.append(closed if share >= 0 else "worse so far")
    if live and (width >= _WIDE or not said):
        said.append("attached, live")
    return " · ".join(said)


def notice(notices: Sequence[Notice], width: int) -> Content | None:
    """Return the newest unseen notice, and the number of others; None without one."""
    if not notices:
        return None
    newest = notices[-1]
    more = f"  (+{len(notices) - 1} more in the log)" if len(notices) > 1 else ""
    room = max(10, width - _BESIDE_A_NOTICE - len(more))
    words = newest.text if len(newest.text) <= room else newest.text[: room - 1] + "…"
    mark = "wrong" if newest.level == "error" else "look"
    moment = time.strftime("%H:%M", time.localtime(newest.time))
    return Content.assemble(
        (f"{MARKS[mark]} {moment} {words}", MARK_STYLES[mark]), (more, "$text-quiet"), (" c", "bold"), " hides it"
    )


def verdict(state: RunState) -> tuple[str, str] | None:
    """Return the run's state or possible actions as a sentence, and its mark; None if there are none."""
    if state.word.startswith("quiet"):
        return "No event for a while, but its process is alive: this is a long step.", "look"
    return _VERDICTS.get(state.word.partition(" ")[0])
