"""Bars of what the phases will take against the budget; of a large device not much more than that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from engine.format import format_bytes
from tinydistill_tui.view.marks import MARK_STYLES, MARKS, bar
from tinydistill_tui.view.plan_facts import Need

_LABEL = 16
_FIGURES = 38


class MemoryBars(Widget):
    """One line for each phase and memory."""

    needs: reactive[Sequence[Need]] = reactive((), layout=True)
    instead: reactive[str] = reactive("the planner is computing…")

    def render(self) -> RenderResult:
        """The lines."""
        width = max(6, self.size.width - _LABEL - _FIGURES)
        lines = []
        for need in self.needs:
            whole = max(scale_bytes(each) for each in self.needs if each.memory == need.memory)
            drawn = bar(need.needed_bytes / whole, width, limit=need.budget_bytes / whole)
            mark = "good" if need.fits else "wrong"
            words = "fits" if need.fits else "does not fit"
            style = MARK_STYLES[mark]
            figures = f" {format_bytes(need.needed_bytes)} of {format_bytes(need.budget_bytes)} "
            parts: list[Any] = [f"Peak {need.memory} {need.noun}".ljust(_LABEL - 1), " "]
            parts += [(drawn, "$primary" if need.fits else "$error"), figures, (f"{MARKS[mark]} {words}", style)]
            lines.append(Content.assemble(*parts))
        return Content("\n").join(lines) if lines else Content.styled(self.instead, "$text-quiet")


def scale_bytes(need: Need) -> float:
    """Return the bytes of a full bar: the device's, or a third more than the budget, so that changes are visible."""
    return max(min(need.total_bytes, need.budget_bytes * 4 / 3), need.needed_bytes, 1)
