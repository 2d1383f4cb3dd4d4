"""Data of a run's plots: memory against budget and prediction, and one metric at a time. Pure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from engine.format import (
    bytes_scale,
    bytes_unit,
    format_bytes,
    format_count,
    format_duration,
    format_number,
    share_in_words,
)
from engine.machine.device import Device
from engine.phase_kinds import phase_noun
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.view.series import Series
from tinydistill_tui.widgets.plot import Curve, Drawing, Level


@dataclass(frozen=True)
class Metric:
    """A metric as the plot names and writes it."""

    name: str
    title: str
    digits: int = 2
    from_zero: bool = False

    def write(self, value: float | None) -> str:
        """A value as a user reads it."""
        return format_count(value) if self.digits == 0 else format_number(value, self.digits)


_BUDGET_IN_SIGHT = 3  # times the highest value

METRICS = (
    Metric("ce", "Label loss (ce)"),
    Metric("loss", "Loss"),
    Metric("kd", "Teacher loss (kd)"),
    Metric("learning_rate", "Learning rate", 6),
    Metric("tokens_per_second", "Tokens per second", 0, from_zero=True),
    Metric("grad_norm", "Gradient norm"),
)


def memory_drawing(view: RunView, now: float, *, device: Device) -> Drawing:
    """Memory over the whole run, with the budget and each phase's prediction as lines.

    A budget far above everything else is a word in the border: as a line it would press the curve to the ground.
    """
    series = view.memory_series
    predictions = [p.predicted_peak_bytes for p in view.phases.values() if p.predicted_peak_bytes]
    budget = view.memory.budget_bytes
    highest = max([*predictions, *(bucket.high for bucket in series.buckets)], default=budget or 0)
    budget_in_sight = budget is not None and budget <= _BUDGET_IN_SIGHT * highest
    if budget is not None and budget_in_sight:
        highest = max(highest, budget)
    scale, digits = bytes_scale(highest)
    end = max(view.elapsed_seconds(now), series.buckets[-1].worked if series.buckets else 0.0, 1.0)
    levels = []
    starts = [*view.phase_starts, (end, "")]
    for (start, name), (until, _) in itertools.pairwise(starts):
        predicted = view.phases[name].predicted_peak_bytes
        if predicted:
            levels.append(Level(start, until, predicted / scale, "╌", "$text-secondary", "predicted"))
    if budget is not None and budget_in_sight:
        levels.append(Level(0.0, end, budget / scale, "┄", "$text-warning", "budget"))
    latest = view.memory.bytes
    newest = f"now {latest / scale:.{digits}f}" if latest is not None else ""
    if view.finished is not None and (peak := view.peak_bytes()) is not None:
        newest = f"peak {peak / scale:.{digits}f}"
    what = "Memory" if device.shares_main_memory else "GPU memory"
    notes = [f"budget {format_bytes(budget)}"] if budget is not None and not budget_in_sight else []
    ranks = view.memory.ranks if view.finished is None else ()
    if len(ranks) > 1:
        what = f"{what} of {len(ranks)} processes"
        notes.append(f"each {min(ranks) / scale:.{digits}f} to {max(ranks) / scale:.{digits}f}")
    return Drawing(
        title=f"{what}, {bytes_unit(highest)}",
        newest=newest,
        note=", ".join(notes),
        x_end=end,
        curves=[Curve(_samples(series, by_step=False, divisor=scale), highest=True)],
        levels=levels,
        ticks=[*((start, phase_noun(name)) for start, name in view.phase_starts), (end, format_duration(end))],
        write=lambda value: f"{value:.{digits}f}",
        from_zero=True,
        empty="no memory measured yet",
    )


def metric_drawing(
    view: RunView, metric: Metric, *, by_step: bool, log: bool, full_rate: float | None = None
) -> Drawing:
    """One metric over steps or time; the label loss with that of the hold-out rows, and the teacher's as a line.

    Args:
        view: the run.
        metric: which.
        by_step: over steps; over time otherwise.
        log: on a logarithmic scale.
        full_rate: tokens a second at this machine's measured rate of matrix products; None where it is not known.
    """
    series = view.metrics[metric.name]
    samples = _samples(series, by_step=by_step)
    start = samples[0][0] if samples else 0.0
    end = max((sample[0] for sample in samples), default=1.0)
    points = []
    if metric.name == "ce":
        points = [
            (each.step if by_step else each.worked, each.values["holdout_loss"])
            for each in view.evaluations
            if each.which.startswith("student") and "holdout_loss" in each.values
        ]
        points = [(x, y) for x, y in points if start <= x <= end]
    levels = []
    teacher = view.holdout_loss("teacher") if metric.name == "ce" else None
    if teacher is not None and samples:
        levels = [Level(start, end, teacher, "╌", "$text-secondary", f"teacher {metric.write(teacher)}")]
    word = format_count if by_step else format_duration
    newest = f"now {metric.write(series.last)}" if series.last is not None else ""
    return Drawing(
        title=metric.title + (" (log)" if log else ""),
        newest=newest + _parts(view, metric),
        note=_of_the_machine(series.last, full_rate) if metric.name == "tokens_per_second" else "",
        x_start=start,
        x_end=max(end, start + 1e-9),
        curves=[Curve(samples)],
        levels=levels,
        points=points,
        ticks=[(start, f"step {word(start)}" if by_step else word(start)), (end, word(end))],
        write=metric.write,
        from_zero=metric.from_zero,
        log=log,
        empty="comes when the student trains" if not view.finished else "no training step yet",
    )


def _of_the_machine(rate: float | None, full_rate: float | None) -> str:
    """The share of this machine's rate that the training has, in words."""
    if not rate or not full_rate or rate > full_rate:
        return ""
    return f"{share_in_words(rate / full_rate)} of what this machine can do"


def _parts(view: RunView, metric: Metric) -> str:
    """The two halves of the loss, in words."""
    if metric.name != "loss":
        return ""
    halves = [(name, view.metrics[name].last) for name in ("kd", "ce")]
    return "".join(f" {name} {format_number(value, 2)}" for name, value in halves if value is not None)


def _samples(series: Series, *, by_step: bool, divisor: float = 1.0) -> list[tuple[float, float, float]]:
    return [
        (bucket.step if by_step else bucket.worked, bucket.low / divisor, bucket.high / divisor)
        for bucket in series.buckets
    ]
