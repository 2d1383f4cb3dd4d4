"""A run's plots side by side: memory, one metric at a time, and in wide windows the speed."""

from __future__ import annotations

from collections.abc import Iterable

from textual.containers import Horizontal
from textual.widget import Widget

from engine.machine.device import Device
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.widgets.plot import Plot
from tinydistill_tui.widgets.run_drawings import METRICS, memory_drawing, metric_drawing

_SPEED = next(metric for metric in METRICS if metric.name == "tokens_per_second")


class RunPlots(Horizontal):
    """Draws a RunView; which metric, over what and on which scale is the user's choice."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._metric = 0
        self._by_step = True
        self._log = False
        self._shown: tuple[RunView, float, Device] | None = None
        self._full_rate: float | None = None

    def compose(self) -> Iterable[Widget]:
        """The three."""
        hints = {
            "memory": "Memory over the whole run; dotted: the budget, dashed: the plan's prediction.",
            "metric": "o: the hold-out rows; dashed: the teacher on them. v another metric, x time, g log.",
            "speed": "Tokens a second that the student reads.",
        }
        for name, hint in hints.items():
            plot = Plot(id=name, classes="pane")
            plot.hint = hint
            yield plot

    def measure_by(self, full_rate: float | None) -> None:
        """Take the tokens a second at this machine's measured rate of matrix products; None: it is not known."""
        self._full_rate = full_rate
        self._again()

    def show(self, view: RunView, now: float, *, device: Device) -> None:
        """Draw a view; ``now`` in Unix seconds."""
        self._shown = view, now, device
        self.query_one("#memory", Plot).show(memory_drawing(view, now, device=device))
        metric = METRICS[self._metric]
        full = self._full_rate
        self.query_one("#metric", Plot).show(
            metric_drawing(view, metric, by_step=self._by_step, log=self._log, full_rate=full)
        )
        self.query_one("#speed", Plot).show(
            metric_drawing(view, _SPEED, by_step=self._by_step, log=False, full_rate=full)
        )

    def next_metric(self) -> None:
        """Another metric."""
        self._metric = (self._metric + 1) % len(METRICS)
        self._again()

    def other_axis(self) -> None:
        """Over steps, or over time."""
        self._by_step = not self._by_step
        self._again()

    def other_scale(self) -> None:
        """Logarithmic, or not."""
        self._log = not self._log
        self._again()

    def _again(self) -> None:
        if self._shown is not None:
            view, now, device = self._shown
            self.show(view, now, device=device)
