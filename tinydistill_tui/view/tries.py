"""Other values of a setting, and what each of them would take: for a user who looks around. Pure, no Textual.

The figures are the planner's own: each value is a whole plan.
"""

from __future__ import annotations

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
# The accumulation keeps the rows of a step as they are, and budgets and checkpoints cost a phase no memory.
_FOLLOW = frozenset({"gradient_accumulation", "memory_budget", "ram_budget", "checkpoint_every", "evaluations"})


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


def tries_words(tries: Sequence[Try], width: int, present: str | None = None) -> str:
    """Return the memory, else the time, of each value; empty if it makes no difference.

    Told of the phase that it changes most; the values nearest to the present one, as many as there is room for. A star
    marks a value with which the planner chooses other settings otherwise: such a figure is not of this value alone.

    Args:
        tries: in the order of their values.
        width: cells there are.
        present: the value of now, as it is typed; the first one if not given.
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
    now = next((place for place, each in enumerate(tries) if each.value == present), 0)
    told = []
    for each in tries:
        moved = _moved(tries[now].plan, each.plan)
        words = "invalid"
        if each.plan is not None:
            fits = "" if each.plan.misfit is None else " does not fit"
            words = f"{write(getattr(each.plan.predicted[phase], figure))}{fits}"
        told.append((f"{each.words}{'*' if moved else ''}: {words}", moved))
    return _fitted(f"{phase_noun(phase)} with ", told, now, width)


def _fitted(head: str, told: list[tuple[str, list[str]]], now: int, width: int) -> str:
    """As many values around the present one as there is room for, and the settings that change with them.

    Empty where there is room for one alone, which compares with nothing.
    """
    first, last = 0, len(told)
    while last - first > 1:
        values = head + " · ".join(words for words, _ in told[first:last])
        moved = list(dict.fromkeys(name for _, names in told[first:last] for name in names))
        note = _they_change(moved, width - len(values), or_vaguely=last - first == 2)
        if note is not None and len(values + note) <= width:
            return values + note
        above, below = last - 1 - now, now - first
        if above >= below and (above > 1 or not below):  # the next larger value stays as long as there is another
            last -= 1
        else:
            first += 1
    return ""


def _moved(now: Plan | None, other: Plan | None) -> list[str]:
    """The settings that the planner chooses otherwise in another plan, and that change its memory or time."""
    if now is None or other is None:
        return []
    chosen = {choice.field: choice.value for choice in now.choices if choice.by == "planner"}
    return [
        SETTINGS_OF[choice.field]
        for choice in other.choices
        if choice.by == "planner" and choice.field in SETTINGS_OF and choice.field in chosen
        and chosen[choice.field] != choice.value and SETTINGS_OF[choice.field] not in _FOLLOW
    ]  # fmt: skip


def _they_change(names: list[str], width: int, *, or_vaguely: bool) -> str | None:
    """Say which settings change with the marked values, as many as ``width`` cells hold; None if there is no room."""
    if not names:
        return ""
    for count in range(len(names), 0, -1):
        words = f" (* {', '.join(names[:count])} change{'s' if count == 1 else ''} too)"
        if len(words) <= width:
            return words
    return " (* others change too)" if or_vaguely else None
