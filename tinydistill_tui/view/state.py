"""In what state a run is, in one word, from its lock and its last events; never from a stored flag. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from engine.format import format_duration
from engine.phase_kinds import phase_verb
from tinydistill_tui.view.run_view import RunView

_STARTING_SECONDS = 20.0  # from making the folder to the supervisor's first word: an interpreter on a slow disk
_QUIET_SECONDS = 15.0
_QUIET_GAPS = 5


@dataclass(frozen=True)
class RunState:
    """The state in a word.

    Attributes:
        word: as it is shown: "training", "paused", "done", "quiet 40 s" …
        mark: name of the mark before it, as in :data:`tinydistill_tui.view.marks.MARKS`.
        live: a supervisor is at work, or is just being started.
        resumable: the run can be resumed.
    """

    word: str
    mark: str
    live: bool = False
    resumable: bool = False


def run_state(view: RunView, *, live: bool, now: float, created: float | None = None) -> RunState:
    """The state of a run.

    Args:
        view: what its events say.
        live: whether a supervisor holds the lock.
        now: Unix seconds.
        created: when it was made or last sent off; a run without lock or words is "starting" for a while after that.
    """
    if not live:
        just_sent_off = created is not None and now - created < _STARTING_SECONDS
        if just_sent_off and (view.last_time is None or (created is not None and view.last_time < created)):
            return RunState("starting", "live", live=True)
        return _ended(view)
    if view.finished is not None:  # its last moments, or the first ones of the next session
        return _ended(view)
    if view.control is not None:
        return RunState(view.control, "stopped" if view.control == "paused" else "look", live=True)
    silence = now - view.last_time if view.last_time is not None else 0.0
    if silence > max(_QUIET_SECONDS, _QUIET_GAPS * view.typical_gap()):
        return RunState(f"quiet {format_duration(silence)}", "look", live=True)
    if view.backing_off:
        return RunState("backing off", "look", live=True)
    phase = view.current
    if phase is None or phase.state != "running":
        return RunState("starting", "live", live=True)
    if "hold-out" in phase.unit:
        return RunState("evaluating", "live", live=True)
    return RunState(phase_verb(phase.name), "live", live=True)


def _ended(view: RunView) -> RunState:
    match view.finished:
        case "done":
            return RunState("done", "good")
        case "failed":
            return RunState("failed", "wrong", resumable=True)
        case "stopped":
            return RunState("stopped", "stopped", resumable=True)
        case _:
            return RunState("lost", "lost", resumable=True)
