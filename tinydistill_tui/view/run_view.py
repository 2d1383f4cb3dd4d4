"""RunView: everything the events of a run say so far, as frozen values.

Screens and progress bars are drawn from a RunView and hold nothing themselves, so that coming back to a run is reading
its events again. How events become one is the business of ``watch``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.channel.words import LogLine
from engine.machine.device import Device
from engine.phase_kinds import PHASES
from engine.student.verdict import gap_closed
from tinydistill_tui.view.series import Series

METRICS = ("loss", "ce", "kd", "learning_rate", "tokens_per_second", "grad_norm")


@dataclass(frozen=True)
class PhaseView:
    """One phase, as far as it is known.

    Attributes:
        state: "waiting", "running" or "done".
        started: Unix seconds of the last start; None before the first.
        seconds: how long it took in all, once it is done; earlier_seconds: in processes before the present one.
        done, total, unit, rate, eta_seconds: the last ``progress``.
        peak_bytes: largest measured so far; predicted_peak_bytes, predicted_seconds: the plan's.
    """

    name: str
    state: str = "waiting"
    started: float | None = None
    seconds: float | None = None
    earlier_seconds: float = 0.0
    done: float | None = None
    total: float | None = None
    unit: str = ""
    rate: float | None = None
    eta_seconds: float | None = None
    peak_bytes: float | None = None
    predicted_peak_bytes: float | None = None
    predicted_seconds: float | None = None

    @property
    def share(self) -> float | None:
        """How much is done, 0 to 1; None when that is unknown."""
        if self.state == "done":
            return 1.0
        if self.done is None or not self.total:
            return None
        return min(1.0, max(0.0, self.done / self.total))


@dataclass(frozen=True)
class Memory:
    """The newest ``memory`` event, in bytes, of the memory that the budget is for.

    ``ranks`` has each process's where several work on the phase.
    """

    bytes: float | None = None
    peak_bytes: float | None = None
    budget_bytes: float | None = None
    device_bytes: float | None = None
    system_available_bytes: float | None = None
    ranks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Notice:
    """A back-off or a warning, which stays on the screen until the user dismisses it."""

    time: float
    level: str
    text: str


@dataclass(frozen=True)
class Evaluation:
    """One measurement on the hold-out rows; ``worked`` are the seconds worked until then."""

    worked: float
    step: float
    which: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Failure:
    """The last ``error`` event."""

    what: str
    why: str
    todo: str


@dataclass(frozen=True)
class RunView:
    """A run, as its events describe it.

    Attributes:
        phases: by name, in their order.
        phase: the one that is running, or ran last; None before the first.
        earlier_seconds: time worked in sessions before the present one.
        session_started: Unix seconds; None before ``run_started``.
        last_time: time of the newest event.
        finished: "done", "failed" or "stopped", until the run is resumed.
        stage: the phase's work while its progress is unknown; empty when it has not been reported.
        control: "pausing", "paused" or "stopping", from the engine's own word.
        backing_off: a phase is being started again with less.
        phase_starts: (seconds worked until then, phase), each time a phase began.
        memory_series: bytes over seconds worked; metrics: by name, over seconds worked and steps.
        log, log_dropped: the newest lines, and how many older ones are not kept.
        bad_lines: unreadable lines; the reader of the file counts them.
    """

    name: str = ""
    pid: int | None = None
    version: str = ""
    events: int = 0
    phases: Mapping[str, PhaseView] = field(default_factory=lambda: {name: PhaseView(name) for name in PHASES})
    phase: str | None = None
    earlier_seconds: float = 0.0
    session_started: float | None = None
    first_time: float | None = None
    last_time: float | None = None
    gaps: tuple[float, ...] = ()
    finished: str | None = None
    exit_code: int | None = None
    stage: str = ""
    control: str | None = None
    backing_off: bool = False
    failure: Failure | None = None
    choices: tuple[Mapping[str, Any], ...] = ()
    disk_bytes: float | None = None
    phase_starts: tuple[tuple[float, str], ...] = ()
    memory: Memory = field(default_factory=Memory)
    memory_series: Series = field(default_factory=Series)
    step: float | None = None
    total_steps: float | None = None
    metrics: Mapping[str, Series] = field(default_factory=lambda: {name: Series() for name in METRICS})
    evaluations: tuple[Evaluation, ...] = ()
    shards: int = 0
    cached_tokens: float = 0
    cached_bytes: float = 0
    checkpoint_step: float | None = None
    checkpoint_bytes: float | None = None
    notices: tuple[Notice, ...] = ()
    log: tuple[LogLine, ...] = ()
    log_dropped: int = 0
    bad_lines: int = 0

    @property
    def current(self) -> PhaseView | None:
        """The phase that is running or ran last."""
        return self.phases[self.phase] if self.phase else None

    def elapsed_seconds(self, now: float) -> float:
        """Time worked on the run, without the time between sessions; ``now`` in Unix seconds."""
        if self.session_started is None:
            return self.earlier_seconds
        end = now if self.finished is None else self.last_time or now
        return self.earlier_seconds + max(0.0, end - self.session_started)

    def holdout_loss(self, which: str) -> float | None:
        """The newest hold-out loss of ``teacher``, ``student_before``, ``student_during`` or ``chance``."""
        for each in reversed(self.evaluations):
            if each.which == which and "holdout_loss" in each.values:
                return each.values["holdout_loss"]
        return None

    @property
    def gap_closed(self) -> float | None:
        """How much of the way to its teacher the student has gone so far; None while that is unknown."""
        teacher, before = self.holdout_loss("teacher"), self.holdout_loss("student_before")
        now = self.holdout_loss("student_after") or self.holdout_loss("student_during")
        if teacher is None or before is None or now is None:
            return None
        return gap_closed(teacher, before, self.holdout_loss("chance"), now)

    def typical_gap(self) -> float:
        """Median of the last seconds between two events; 0 when there are none."""
        return statistics.median(self.gaps) if self.gaps else 0.0

    def peak_bytes(self) -> float | None:
        """The largest memory of any phase, of that which the plan is about."""
        phases = [phase for name, phase in self.phases.items() if takes_planned_memory(name, self.choices)]
        return max((phase.peak_bytes for phase in phases if phase.peak_bytes is not None), default=None)


def takes_planned_memory(phase: str, choices: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a phase takes the memory that the plan is about: on a GPU, the text is prepared in main memory.

    Args:
        phase: its name.
        choices: of the plan.
    """
    device = next((choice.get("value") for choice in choices if choice.get("field") == "device"), None)
    return phase != "prepare" or not isinstance(device, str) or Device.of(device).shares_main_memory
