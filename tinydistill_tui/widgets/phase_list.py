"""The three phases, one row each: finished ones with their figures, the current one with its bar, those that wait."""

from __future__ import annotations

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from engine.format import (
    bytes_unit,
    format_bytes,
    format_bytes_like,
    format_clock,
    format_count,
    format_duration,
    format_percent,
    format_rate,
)
from engine.phase_kinds import phase_noun
from tinydistill_tui.view.marks import MARK_STYLES, MARKS, bar
from tinydistill_tui.view.run_view import PhaseView, RunView
from tinydistill_tui.view.state import RunState

_BAR_CELLS = 22
_LEAST_WIDTH_FOR_A_BAR = 56


class PhaseList(Widget):
    """Drawn from a RunView; the phase it is in has the run's mark, and the time left while a process works on it."""

    view: RunView | None = None
    state = RunState("starting", "live", live=True)

    def show(self, view: RunView, state: RunState) -> None:
        """Draw another view."""
        self.view, self.state = view, state
        self.refresh()

    def render(self) -> RenderResult:
        """Three rows; only the running one where there is room for one."""
        if self.view is None:
            return Content("")
        phases = list(self.view.phases.values())
        if self.size.height < len(phases):
            phases = [self.view.current or phases[0]]
        rows = [phase_row(phase, self.view, self.size.width, self.state) for phase in phases]
        return Content("\n").join(rows)


def phase_row(phase: PhaseView, view: RunView, width: int, state: RunState) -> Content:
    """One phase in one line of at most ``width`` cells; what matters least is left out first."""
    if phase.state == "done":
        mark, start, rest = "good", format_clock(phase.seconds).rjust(8), _done_parts(phase, view)
    elif phase.state == "running":
        mark, start, rest = state.mark, "", _running_parts(phase, view, width, state)
    else:
        mark, start, rest = "waiting", "", _waiting_parts(phase)
    head = f"{MARKS[mark]} {phase_noun(phase.name):8}{start}"
    line, used = [(head, MARK_STYLES[mark] if phase.state == "running" else "")], len(head)
    for words, style in rest:
        if used + 2 + len(words) > width:
            break
        line += [("  ", ""), (words, style)]
        used += 2 + len(words)
    content = Content.assemble(*line)
    return content if phase.state != "waiting" else content.stylize("$text-quiet")


def _done_parts(phase: PhaseView, view: RunView) -> list[tuple[str, str]]:
    parts = [(_amount(phase, view).ljust(24), "")]
    if phase.peak_bytes is not None:
        parts.append((f"peak {format_bytes(phase.peak_bytes)}{_predicted(phase)}", "$text-quiet"))
    return parts


def _running_parts(phase: PhaseView, view: RunView, width: int, state: RunState) -> list[tuple[str, str]]:
    live = state.live
    if phase.share is None:
        return [
            (
                (_stage(view) if live else state.word)
                if phase.done is None
                else f"{format_count(phase.done)} {phase.unit}",
                "",
            )
        ]
    if width < _LEAST_WIDTH_FOR_A_BAR:
        left = f"{format_duration(phase.eta_seconds)} left" if live and phase.eta_seconds is not None else ""
        return [(format_percent(phase.share), "$text-primary"), (left, "bold")]
    filled = bar(phase.share, max(8, min(_BAR_CELLS + (width - 78) // 2, 40)))
    parts = [(_place(phase), ""), (f"{filled} {format_percent(phase.share):>5}", "$text-primary")]
    if live and phase.eta_seconds is not None:
        parts.append((f"{format_duration(phase.eta_seconds)} left", "bold"))
    if live and phase.rate is not None:
        parts.append((format_rate(phase.rate, phase.unit), "$text-quiet"))
    if phase.peak_bytes is not None:
        parts.append((f"peak {format_bytes(phase.peak_bytes)}{_predicted(phase)}", "$text-quiet"))
    return parts


def _place(phase: PhaseView) -> str:
    return f"{format_count(phase.done)}/{format_count(phase.total)} {phase.unit}".strip()


def _stage(view: RunView) -> str:
    """Return the phase's own words for its work."""
    return view.stage[:1].lower() + view.stage[1:] if view.stage else "under way"


def _waiting_parts(phase: PhaseView) -> list[tuple[str, str]]:
    parts = []
    if phase.share:
        parts.append((f"{_place(phase)} so far", ""))
    if phase.predicted_seconds is not None:
        parts.append((f"predicted {format_duration(phase.predicted_seconds)}", ""))
    if phase.predicted_peak_bytes is not None:
        parts.append((f"peak {format_bytes(phase.predicted_peak_bytes)} predicted", ""))
    return parts


def _amount(phase: PhaseView, view: RunView) -> str:
    if phase.name == "teacher" and view.cached_bytes:
        return f"{format_count(view.cached_tokens)} tokens, {format_bytes(view.cached_bytes)}"
    if phase.name == "student" and view.step is not None:
        return f"{format_count(view.step)} steps"
    return f"{format_count(phase.done)} {phase.unit}" if phase.done is not None else ""


def _predicted(phase: PhaseView) -> str:
    if not phase.predicted_peak_bytes or phase.peak_bytes is None:
        return ""
    if bytes_unit(phase.predicted_peak_bytes) == bytes_unit(phase.peak_bytes):
        return f" (predicted {format_bytes_like(phase.predicted_peak_bytes, phase.peak_bytes)})"
    return f" (predicted {format_bytes(phase.predicted_peak_bytes)})"
