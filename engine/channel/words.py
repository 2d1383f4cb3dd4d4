"""The one table from an event to a line of text: ``run.log``, the command's lines and the wizard's log show it.

Pure: it takes any event, also an odd one and one of a newer version, and never raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from engine.format import format_bytes, format_count, format_duration, format_number, format_percent
from engine.phase_kinds import phase_noun

Event = Mapping[str, Any]

LEVELS = ("debug", "info", "warning", "error")
_BAD = ("warning", "error")

# They come by the second; screens show them in places of their own.
_SILENT = frozenset({"memory", "progress"})


# Codes of information that a user decides by, wherever little is shown.
_DECIDED_BY = frozenset({"cut", "judged", "share", "skipped", "stage"})


class LogLine(NamedTuple):
    """One line of the log: when (Unix seconds), how bad, and what."""

    time: float
    level: str
    text: str


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond every float
        return None


def budgeted(event: Event, name: str = "bytes") -> float | None:
    """Memory that a phase has taken of what its budget limits.

    Of a phase that computes on a GPU with memory of its own, that is the GPU's; else main memory, on a GPU that shares
    it too.

    Args:
        event: a ``memory`` or ``phase_finished`` event.
        name: "bytes" or "peak_bytes".

    Returns:
        Bytes; None where they are not known: some drivers do not report what a process holds.
    """
    return number(event.get(f"device_{name}" if event.get("device") else name))


def text(value: Any, limit: int = 2000) -> str:
    """A value on one line, without control characters."""
    words = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in words[:limit])


def log_line(event: Event) -> LogLine | None:
    """The event in words; None for those that come by the second."""
    kind = event["kind"]
    if kind in _SILENT:
        return None
    time = number(event.get("time")) or 0.0
    if kind == "log":
        level = event.get("level")
        return LogLine(time, level if level in LEVELS else "info", text(event.get("message")))
    describe = _WORDS.get(kind)
    level = "error" if kind == "error" else "warning" if kind == "back_off" else "info"
    return LogLine(time, level, describe(event) if describe else text(_rest(event)))


def headline_of(event: Event) -> str | None:
    """Return the line of an event that a user decides by, for displays with little room; None for other events."""
    line = log_line(event)
    if line is None or not _is_headline(event):
        return None
    return f"{line.level}: {line.text}" if event["kind"] == "log" and line.level in _BAD else line.text


def _is_headline(event: Event) -> bool:
    match event["kind"]:
        case "run_resumed" | "phase_finished" | "back_off":
            return True
        case "log":
            return event.get("level") in _BAD or event.get("code") in _DECIDED_BY
        case "control":
            return bool(event.get("state"))
        case "evaluation":
            return event.get("holdout_loss") is not None
    return False


def back_off_words(event: Event) -> str:
    """Return the reduced setting, and the reason."""
    field, old, new = (text(event.get(name)) for name in ("field", "from", "to"))
    return f"backed off: {field} {old} to {new} ({text(event.get('reason')) or 'no reason given'})"


def _rest(event: Event) -> str:
    pairs = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("time", "kind"))
    return f"{event['kind']} {pairs}"


def _metric(event: Event) -> str:
    parts = [f"step {format_count(number(event.get('step')))}"]
    for name, short in (("loss", "loss"), ("learning_rate", "lr"), ("grad_norm", "grad")):
        if (value := number(event.get(name))) is not None:
            parts.append(f"{short} {format_number(value)}")
    return " ".join(parts)


def _shard(event: Event) -> str:
    name = PurePath(text(event.get("path"))).name
    tokens, size = format_count(number(event.get("tokens"))), format_bytes(number(event.get("bytes")))
    return f"shard {name}: {tokens} tokens, {size}"


def _checkpoint(event: Event) -> str:
    return f"checkpoint {PurePath(text(event.get('path'))).name}, {format_bytes(number(event.get('bytes')))}"


def _evaluation(event: Event) -> str:
    if "gap_closed" in event:
        share = number(event["gap_closed"])
        none = "none to close, the loss was at the teacher's or below it at the beginning"
        return f"gap to the teacher: {none}" if share is None else f"gap to the teacher closed: {format_percent(share)}"
    which, loss = text(event.get("which")).replace("_", " "), format_number(number(event.get("holdout_loss")))
    parts = [f"hold-out, {which}: loss {loss}"]
    if (perplexity := number(event.get("perplexity"))) is not None:
        parts.append(f"perplexity {format_number(perplexity, 2)}")
    return ", ".join(parts)


def _control(event: Event) -> str:
    if event.get("state"):
        return text(event["state"])
    answer = "" if event.get("accepted", True) else " (refused)"
    return f"{text(event.get('command'))} requested by {text(event.get('by')) or 'another program'}{answer}"


def _phase_finished(event: Event) -> str:
    seconds, peak = format_duration(number(event.get("seconds"))), format_bytes(budgeted(event, "peak_bytes"))
    return f"{phase_noun(text(event.get('phase')))} finished in {seconds}, peak {peak}"


def _plan(event: Event) -> str:
    choices = event.get("choices")
    return f"plan: {len(choices) if isinstance(choices, list) else 0} settings, in run.json"


def _error(event: Event) -> str:
    return " ".join(text(event.get(part)) for part in ("what", "why", "todo") if event.get(part))


_WORDS: dict[str, Callable[[Event], str]] = {
    "run_started": lambda event: f"run started, version {text(event.get('version'))}, pid {text(event.get('pid'))}",
    "run_resumed": lambda event: f"run resumed, version {text(event.get('version'))}, pid {text(event.get('pid'))}",
    "run_finished": lambda event: f"run finished: {text(event.get('status'))}",
    "plan": _plan,
    "phase_started": lambda event: f"{phase_noun(text(event.get('phase')))} started",
    "phase_finished": _phase_finished,
    "metric": _metric,
    "shard": _shard,
    "checkpoint": _checkpoint,
    "evaluation": _evaluation,
    "control": _control,
    "back_off": back_off_words,
    "error": _error,
}
