"""The pictures of ``report.md`` as plain SVG files: loss, memory and calibration. They need no display and no library.

They are drawn from a run's events and its report, and measure nothing themselves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from engine.channel.events import Event
from engine.channel.words import budgeted
from engine.phase_kinds import PHASES

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 720, 360, 64, 44, 16, 48
_MOST_POINTS = 400
_GIB = 2**30
_BLUE, _RED, _GREEN, _GREY = "#1f6feb", "#d1242f", "#1a7f37", "#8c959f"
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a picture.

    Attributes:
        name: in the legend.
        points: (x, y) in rising x.
        colour: as in CSS.
        is_dashed: for what is compared with.
        has_dots: a dot at each point, for measurements that are far apart.
    """

    name: str
    points: Points
    colour: str
    is_dashed: bool = False
    has_dots: bool = False


def draw_all(events: Iterable[Event], report: Mapping[str, Any]) -> dict[str, str]:
    """The pictures by file name; one without data is left out.

    Args:
        events: of the run.
        report: as in ``report.json``.
    """
    told = list(events)
    found = {
        "loss.svg": _loss(told, report),
        "memory.svg": _memory(told, report),
        "calibration.svg": _calibration(report),
    }
    return {name: picture for name, picture in found.items() if picture is not None}


def _loss(events: Sequence[Event], report: Mapping[str, Any]) -> str | None:
    """Training loss by step, and the hold-out loss of the evaluations beside the teacher's."""
    steps = {int(each["step"]): each["loss"] for each in events if each["kind"] == "metric"}
    trained = [(float(step), float(loss)) for step, loss in sorted(steps.items()) if _is_number(loss)]
    if len(trained) < 2:
        return None
    last = trained[-1][0]
    looks = {
        int(each["step"]): float(each["holdout_loss"])
        for each in events
        if each["kind"] == "evaluation" and each.get("which") == "student_during" and "step" in each
    }
    ends = (("student_before", 0), ("student_after", int(last)))
    looks |= {step: float(report[which]["holdout_loss"]) for which, step in ends}
    teacher = float(report["teacher"]["holdout_loss"])
    lines = [
        Line("training loss", _thinned(trained), _GREY),
        Line("hold-out", [(float(step), loss) for step, loss in sorted(looks.items())], _BLUE, has_dots=True),
        Line("the teacher's hold-out", [(0.0, teacher), (last, teacher)], _GREEN, is_dashed=True),
    ]
    return _picture("Loss, nats per token", "optimizer step", lines)


def _memory(events: Sequence[Event], report: Mapping[str, Any]) -> str | None:
    """Memory of each phase over time, with its budget and its predicted peak."""
    told = [each for each in events if each["kind"] == "memory" and each.get("phase") in PHASES]
    if len(told) < 2:
        return None
    begin = told[0]["time"]
    lines = []
    for phase, colour in zip(PHASES, itertools.cycle((_GREY, _GREEN, _BLUE)), strict=False):
        points = [
            ((each["time"] - begin) / 60, size / _GIB)
            for each in told
            if each["phase"] == phase and (size := budgeted(each)) is not None
        ]
        if not points:
            continue
        lines.append(Line(phase, _thinned(points, max), colour))
        predicted = (report["phases"].get(phase) or {}).get("predicted_peak_bytes")
        if predicted:
            level = predicted / _GIB
            lines.append(Line(f"{phase}, predicted", [(points[0][0], level), (points[-1][0], level)], colour, True))
    if not lines:
        return None
    largest = max(y for line in lines for _, y in line.points)
    # Of a run on a GPU, the text is prepared in main memory, which has a budget of its own.
    alike = [each for each in told if each.get("device")] or told
    budgets = [each["budget_bytes"] / _GIB for each in alike if each.get("budget_bytes")]
    end = (told[-1]["time"] - begin) / 60
    if budgets and min(budgets) < 4 * largest:  # else the lines would lie at the bottom
        lines.append(Line("budget", [(0.0, min(budgets)), (end, min(budgets))], _RED, True))
    return _picture("Memory, GiB", "minutes", lines, from_zero=True)


def _calibration(report: Mapping[str, Any]) -> str | None:
    """Accuracy of the first choice by its confidence (Guo et al. 2017, https://arxiv.org/abs/1706.04599, figure 1)."""
    lines = [Line("calibrated", [(0.0, 0.0), (1.0, 1.0)], _GREY, is_dashed=True)]
    for who, name, colour in (
        ("teacher", "teacher", _GREEN),
        ("student_before", "student before", _RED),
        ("student_after", "student after", _BLUE),
    ):
        bins = (report.get(who) or {}).get("calibration") or []
        points = [(float(confidence), float(accuracy)) for _, confidence, accuracy in bins]
        if len(points) > 1:
            lines.append(Line(name, points, colour, has_dots=True))
    if len(lines) == 1:
        return None
    return _picture("Accuracy of the first choice", "its probability", lines, from_zero=True)


def _thinned(points: Points, pick: Any = None) -> Points:
    """At most 400 points: means of neighbours, or what ``pick`` takes of them."""
    if len(points) <= _MOST_POINTS:
        return points
    found = []
    for place in range(_MOST_POINTS):
        part = points[place * len(points) // _MOST_POINTS : (place + 1) * len(points) // _MOST_POINTS]
        values = [y for _, y in part]
        found.append((part[len(part) // 2][0], pick(values) if pick is not None else sum(values) / len(values)))
    return found


def _picture(title: str, below: str, lines: Sequence[Line], *, from_zero: bool = False) -> str:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if math.isfinite(y)]
    across, up = _ticks(min(xs), max(xs)), _ticks(0.0 if from_zero else min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - across[0]) / (across[-1] - across[0]) * (_WIDTH - _LEFT - _RIGHT)
        down = (up[-1] - min(max(y, up[0]), up[-1])) / (up[-1] - up[0]) * (_HEIGHT - _TOP - _BOTTOM)
        return _LEFT + right, _TOP + down

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="18" font-size="14">{escape(title)}</text>',
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 10}" text-anchor="end">{escape(below)}</text>',
    ]
    for value in up:
        y = place(across[0], value)[1]
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in across:
        parts.append(f'<text x="{place(value, up[0])[0]:.1f}" y="{_HEIGHT - 28}" text-anchor="middle">{value:g}</text>')
    legend = float(_LEFT)
    for line in lines:
        parts += _drawn(line, [place(x, y) for x, y in line.points if math.isfinite(y)])
        dashes = ' stroke-dasharray="5 4"' if line.is_dashed else ""
        parts.append(
            f'<line x1="{legend:.0f}" x2="{legend + 18:.0f}" y1="32" y2="32" stroke="{line.colour}" '
            f'stroke-width="2"{dashes}/>'
        )
        parts.append(f'<text x="{legend + 22:.0f}" y="36">{escape(line.name)}</text>')
        legend += 36 + 6.4 * len(line.name)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(line: Line, points: Points) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if line.is_dashed else ""
    drawn = [f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.5"{dashes}/>']
    if line.has_dots:
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}"/>' for x, y in points]
    return drawn


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round values from at or below ``low`` to at or above ``high``."""
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in _STEPS if power * each >= rough)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
