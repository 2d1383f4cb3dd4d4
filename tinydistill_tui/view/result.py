"""The end of a run, for a screen: the first sentence, the table, the samples. Pure.

Numbers and sentences are the report's own (``engine.run.report``); here they are only laid out.
"""

from __future__ import annotations

from typing import Any

from engine.channel.words import number
from engine.format import format_bytes, format_count
from engine.phase_kinds import PHASES, phase_noun
from engine.run.report import MEASURES, Measure, compute_unit, cost_in_words, one_line, speed_in_words
from engine.student import verdict

_LEAST_KL = 0.05  # nats a token
_TIMES = 10.0  # from here on a factor reads better than a percentage

PEOPLE = ("teacher", "student_before", "student_after")


def first_sentence(report: dict[str, Any]) -> str | None:
    """The result in one sentence; None when the report has none."""
    try:
        return verdict.headline(report)
    except (KeyError, TypeError, ValueError):
        return None


def is_success(report: dict[str, Any]) -> bool:
    """Return whether the first sentence is a good one."""
    try:
        return verdict.is_success(report)
    except (KeyError, TypeError, ValueError):
        return False


def table(report: dict[str, Any]) -> list[list[str]]:
    """Rows of: measure, teacher, student before, student after, change."""
    rows = [["Hold-out", "teacher", "before", "after", "change"]]
    for measure in MEASURES:
        values = [number(_part(report, who).get(measure.key)) for who in PEOPLE]
        if all(value is None for value in values):  # of a report that does not have it yet
            continue
        rows.append([measure.title, *(measure.shown(value) for value in values), _change(measure, *values[1:])])
    return rows


def costs(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return time and memory of the phases, and the size of the cache."""
    lines = []
    phases = _part(report, "phases")
    for name in PHASES[1:]:
        phase = _part(phases, name)
        if phase:
            known = ("tokens", "seconds", "peak_bytes", "device_peak_bytes", "predicted_peak_bytes")
            lines.append((phase_noun(name), cost_in_words({key: number(phase.get(key)) for key in known})))
            figures = {key: number(phase.get(key)) for key in ("gemm_share", "overhead_seconds")}
            if speed := speed_in_words(figures, compute_unit(report)):
                lines.append(("", speed))
    cache = _part(report, "cache")
    if cache:
        each = number(cache.get("bytes_per_token")) or 0.0
        tokens, size = format_count(number(cache.get("tokens"))), format_bytes(number(cache.get("bytes")))
        lines.append(("cache", f"{tokens} tokens, {size}, {each:.1f} bytes a token; kept for the next student"))
    return lines


def samples(report: dict[str, Any]) -> list[dict[str, str]]:
    """The text samples, each on one line: prompt, before, after, teacher."""
    found = report.get("samples")
    return [
        {key: one_line(sample.get(key)) for key in ("prompt", "before", "after", "teacher")}
        for sample in (found if isinstance(found, list) else [])
        if isinstance(sample, dict)
    ]


def _change(measure: Measure, before: float | None, after: float | None) -> str:
    """Signed, and relative where the size says little: a loss by its difference, a perplexity by its share."""
    if before is None or after is None:
        return "–"
    if measure.percent:
        return f"{(after - before) * 100:+.1f} points"
    if measure.key == "kl_to_teacher":
        before, after = verdict.shown_kl(before), verdict.shown_kl(after)
        if before < _LEAST_KL:  # a share of next to nothing says nothing
            return f"{after - before:+.3f}"
    if measure.key in ("perplexity", "kl_to_teacher") and before:
        times = after / before
        if times >= _TIMES:
            return f"× {times:,.0f}" if times < 1e6 else f"× {times:.1e}"
        return f"{times - 1:+.0%}"
    return f"{after - before:+.3f}"


def _part(report: dict[str, Any], name: str) -> dict[str, Any]:
    part = report.get(name)
    return part if isinstance(part, dict) else {}
