"""Other values of a setting, and what each of them would take: for a user who looks around. Pure, no Textual.

The figures are the planner's own: each value is a whole plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import TinyDistillError
from engine.format import format_bytes, format_duration
from engine.phase_kinds import PHASES, phase_noun
from engine.planner import Plan
from engine.settings.config import SETTINGS, RunConfig
from tinydistill_tui.view.plan_facts import SETTINGS_OF, shown, typed

_NEIGHBOURS = 2  # on each side
_ROOM_FOR_VALUES = 32  # cells; what is left says why figures rise and fall again


@dataclass(frozen=True)
class Try:
    """One value, as it is typed and as it is shown, and the plan with it; None where it cannot be."""

    value: str
    words: str
    plan: Plan | None


def choices_of(name: str) -> list[tuple[str, str]]:
    """Return the choices of a setting as values and texts; empty if it is typed."""
    info = SETTINGS[name]
    if info.kind == "bool":
        return [("on", "on"), ("off", "off")]
    return [(choice, choice) for choice in info.choices]


def stepped(name: str, value: Any, step: int) -> str | None:
    """The value ``step`` further, as it is typed: the next choice, twice as much or half; None where there is none."""
    info = SETTINGS[name]
    choices = [choice for choice, _ in choices_of(name)]
    now = typed(name, value)
    if choices:
        return choices[(choices.index(now) + step) % len(choices)] if now in choices else choices[0]
    if info.kind not in ("int", "float", "bytes", "layers") or not isinstance(value, (int, float)):
        return None
    other = value * 2.0**step
    low, high = info.minimum, info.maximum
    if (low is not None and (other < low or (info.exclusive_minimum and other == low))) or (
        high is not None and (other > high or (info.exclusive_maximum and other == high))
    ):
        return None
    return typed(name, other if info.kind == "float" else int(other)) if other >= 1 or info.kind == "float" else None


def values_around(name: str, value: Any) -> list[str]:
    """The choices, or some values below and above, in their order; as they are typed."""
    choices = [choice for choice, _ in choices_of(name)]
    if choices:
        return choices
    found = [typed(name, value)]
    for step in (-1, 1):
        for distance in range(1, _NEIGHBOURS + 1):
            other = stepped(name, value, step * distance)
            if other is not None and other not in found:
                found.insert(0 if step < 0 else len(found), other)
    return found


def tried(
    name: str, values: Sequence[str], config: RunConfig, make_plan: Callable[[RunConfig], Plan],
    cancelled: Callable[[], bool],
) -> list[Try]:  # fmt: skip
    """Plan with each of the values; end early if the result is no longer needed."""
    found = []
    for value in values:
        if cancelled():
            break
        try:
            other = RunConfig.model_validate({**config.asked(), name: value, "use_recommended": True})
            found.append(Try(value, shown(name, getattr(other, SETTINGS[name].field)), make_plan(other)))
        except (TinyDistillError, ValueError):
            found.append(Try(value, value, None))
    return found


def tries_words(tries: Sequence[Try], width: int) -> str:
    """Return the memory, else the time, of each value; empty if it makes no difference.

    Told of the phase that it changes most; as many values as there is room for.
    """
    plans = [each.plan for each in tries if each.plan is not None]
    phases = [phase for phase in PHASES if len(plans) > 1 and all(phase in plan.predicted for plan in plans)]
    if not phases:
        return ""

    def spread(phase: str, figure: str) -> float:
        figures = [getattr(plan.predicted[phase], figure) for plan in plans]
        return (max(figures) - min(figures)) / max(max(figures), 1e-9)

    figure = "peak_bytes" if max(spread(phase, "peak_bytes") for phase in phases) > 0.01 else "seconds"
    phase = max(phases, key=lambda phase: spread(phase, figure))
    if spread(phase, figure) <= 0.01:
        return ""
    write = format_bytes if figure == "peak_bytes" else format_duration
    parts = []
    for each in tries:
        if each.plan is None:
            parts.append(f"{each.words}: invalid")
            continue
        fits = "" if each.plan.misfit is None else " does not fit"
        parts.append(f"{each.words}: {write(getattr(each.plan.predicted[phase], figure))}{fits}")
    head, why = f"{phase_noun(phase)} with ", ""
    if not _goes_one_way([getattr(plan.predicted[phase], figure) for plan in plans]):
        why = _others_that_move(plans, width - _ROOM_FOR_VALUES)
    while len(head) + len(" · ".join(parts)) + len(why) > width and len(parts) > 1:
        parts.pop()
    words = head + " · ".join(parts) + why
    return words if len(words) <= width else ""


def _goes_one_way(figures: Sequence[float]) -> bool:
    """Return whether the figures only rise or only fall."""
    steps = [later - earlier for earlier, later in itertools.pairwise(figures)]
    return all(step >= 0 for step in steps) or all(step <= 0 for step in steps)


def _others_that_move(plans: Sequence[Plan], width: int) -> str:
    """Say which settings the planner chooses otherwise, as many as ``width`` cells hold; empty if there are none."""
    chosen: dict[str, set[str]] = {}
    for each in plans:
        for choice in each.choices:
            if choice.by == "planner" and choice.field in SETTINGS_OF:
                chosen.setdefault(SETTINGS_OF[choice.field], set()).add(str(choice.value))
    names = [name for name, values in chosen.items() if len(values) > 1]
    while names:
        words = f" ({', '.join(names)} change{'s' if len(names) == 1 else ''} too)"
        if len(words) <= width:
            return words
        names.pop()
    return ""
