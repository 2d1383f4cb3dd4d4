"""``fold``: reads on, from a RunView and more events to the next RunView.

Pure: no Textual, no files, no clock; and no event, however odd, makes it raise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from engine.channel.events import Event
from engine.channel.words import LogLine, back_off_words, budgeted, log_line, number, text
from engine.format import format_duration
from tinydistill_tui.view.run_view import METRICS, Evaluation, Failure, Memory, Notice, RunView, takes_planned_memory

MAX_LOG_LINES = 50_000
_GAPS_KEPT = 32


def fold(view: RunView, events: Iterable[Event]) -> RunView:
    """The view after more events; the old one is left as it was."""
    folding = _Folding(view)
    for event in events:
        folding.take(event)
    return folding.view()


class _Folding:
    """A RunView while it is being extended: what grows is a list for as long as the fold lasts."""

    def __init__(self, view: RunView) -> None:
        self.base = view
        self.now = 0.0
        self.changes: dict[str, Any] = {}
        self.phases = dict(view.phases)
        self.gaps: deque[float] = deque(view.gaps, _GAPS_KEPT)
        self.memory_samples: list[tuple[float, float, float]] = []
        self.metric_samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in METRICS}
        self.log: list[LogLine] = []
        self.events = view.events
        self.last_time = view.last_time
        self.takers: dict[str, Callable[[Event], None]] = {
            "run_started": self._run_started,
            "run_resumed": self._run_started,
            "plan": self._plan,
            "phase_started": self._phase_started,
            "phase_finished": self._phase_finished,
            "progress": self._progress,
            "memory": self._memory,
            "metric": self._metric,
            "evaluation": self._evaluation,
            "shard": self._shard,
            "checkpoint": self._checkpoint,
            "control": self._control,
            "back_off": self._back_off,
            "log": self._log,
            "error": self._error,
            "run_finished": self._run_finished,
        }

    def get(self, name: str) -> Any:
        return self.changes[name] if name in self.changes else getattr(self.base, name)

    def take(self, event: Event) -> None:
        time = number(event.get("time"))
        self.now = time if time is not None else self.last_time or 0.0
        if self.last_time is not None:
            self.gaps.append(max(0.0, self.now - self.last_time))
        elif time is not None:
            self.changes["first_time"] = time
        taker = self.takers.get(event["kind"])
        if taker is not None:
            taker(event)
        line = log_line(event)
        if line is not None:
            self.log.append(line._replace(text=line.text + self._in_all(event)))
        self.last_time = self.now
        self.events += 1

    def view(self) -> RunView:
        base = self.base
        log = (*base.log, *self.log) if self.log else base.log
        dropped = max(0, len(log) - MAX_LOG_LINES)
        return replace(
            base,
            **self.changes,
            phases=self.phases,
            gaps=tuple(self.gaps),
            events=self.events,
            last_time=self.last_time,
            memory_series=base.memory_series.extended(self.memory_samples)
            if self.memory_samples
            else base.memory_series,
            metrics={
                name: base.metrics[name].extended(samples) if samples else base.metrics[name]
                for name, samples in self.metric_samples.items()
            },
            log=log[dropped:] if dropped else log,
            log_dropped=base.log_dropped + dropped,
        )

    def _in_all(self, event: Event) -> str:
        """The whole time of a phase that took several processes: the event knows the last one alone."""
        name = self._phase_of(event) if event["kind"] == "phase_finished" else None
        if name is None or not self.phases[name].earlier_seconds or self.phases[name].seconds is None:
            return ""
        return f"; {format_duration(self.phases[name].seconds)} in all"

    def _close_phases(self, end: float) -> None:
        """A phase's process is over without having finished: its time counts, and it will begin again."""
        for name, phase in self.phases.items():
            if phase.state == "running" and phase.started is not None:
                spent = phase.earlier_seconds + max(0.0, end - phase.started)
                self._change_phase(name, earlier_seconds=spent, started=None)

    def _worked(self) -> float:
        """Seconds worked so far: the axis of every curve, so that a night between two sessions takes no room."""
        started = self.get("session_started")
        return float(self.get("earlier_seconds") + (max(0.0, self.now - started) if started is not None else 0.0))

    def _phase_of(self, event: Event) -> str | None:
        phase = event.get("phase") or self.get("phase")
        return phase if isinstance(phase, str) and phase in self.phases else None

    def _change_phase(self, name: str, **fields: Any) -> None:
        self.phases[name] = replace(self.phases[name], **fields)

    def _join_in_the_middle(self, name: str) -> None:
        """Mark the phase as running, for a reader that has not seen its begin."""
        if self.get("phase") is None:
            self.changes["phase"] = name
            self._change_phase(name, state="running", started=self.now)

    def _run_started(self, event: Event) -> None:
        started, last = self.get("session_started"), self.last_time
        if last is not None:
            self._close_phases(last)
        if started is not None and last is not None:
            self.changes["earlier_seconds"] = self.get("earlier_seconds") + max(0.0, last - started)
        self.gaps.clear()
        pid = number(event.get("pid"))
        self.changes.update(
            session_started=self.now,
            name=text(event.get("name")) or self.get("name"),
            version=text(event.get("version")),
            pid=int(pid) if pid is not None else None,
            finished=None,
            exit_code=None,
            failure=None,
            control=None,
            backing_off=False,
        )
        for name, phase in self.phases.items():
            if phase.state == "running":
                self._change_phase(name, state="waiting", eta_seconds=None, rate=None)

    def _plan(self, event: Event) -> None:
        choices = event.get("choices")
        if isinstance(choices, list):
            self.changes["choices"] = tuple(choice for choice in choices if isinstance(choice, dict))
        predicted = event.get("predicted")
        if not isinstance(predicted, dict):
            return
        self.changes["disk_bytes"] = number(predicted.get("disk_bytes"))
        if "prepare" in self.phases:
            self._change_phase(
                "prepare",
                predicted_peak_bytes=number(predicted.get("prepare_bytes")),
                predicted_seconds=number(predicted.get("prepare_seconds")),
            )
        for name in self.phases:
            of_phase = predicted.get(name)
            if isinstance(of_phase, dict):
                self._change_phase(
                    name,
                    predicted_peak_bytes=number(of_phase.get("peak_bytes")),
                    predicted_seconds=number(of_phase.get("seconds")),
                )

    def _phase_started(self, event: Event) -> None:
        name = self._phase_of(event)
        if name is None:
            return
        self._close_phases(self.last_time if self.last_time is not None else self.now)
        self._settle_the_others(name)
        starts = (*self.get("phase_starts"), (self._worked(), name))
        self.changes.update(phase=name, stage="", backing_off=False, phase_starts=starts)
        phase = self.phases[name]
        done_before = phase.seconds if phase.state == "done" else None  # it is done again; the first time counts too
        self._change_phase(
            name,
            state="running",
            started=self.now,
            earlier_seconds=phase.earlier_seconds if done_before is None else done_before,
            seconds=None,
            rate=None,
            eta_seconds=None,
        )

    def _settle_the_others(self, name: str) -> None:
        """One phase works at a time, and each reads what the one before has made.

        So those before it are done, also where the event of their end was lost with a folder that was away or a disk
        that was full; and one behind it that had begun waits until this one is done again.
        """
        names = list(self.phases)
        for other, phase in list(self.phases.items()):
            if names.index(other) < names.index(name) and phase.state != "done":
                self._change_phase(other, state="done", seconds=phase.earlier_seconds or None, eta_seconds=None)
            elif names.index(other) > names.index(name) and phase.state == "running":
                self._change_phase(other, state="waiting", rate=None, eta_seconds=None)

    def _phase_finished(self, event: Event) -> None:
        name = self._phase_of(event)
        if name is None:
            return
        peaks = [peak for peak in (self.phases[name].peak_bytes, budgeted(event, "peak_bytes")) if peak is not None]
        seconds = number(event.get("seconds"))
        self._change_phase(
            name,
            state="done",
            seconds=seconds + self.phases[name].earlier_seconds if seconds is not None else None,
            eta_seconds=None,
            peak_bytes=max(peaks, default=None),
        )

    def _progress(self, event: Event) -> None:
        name = self._phase_of(event)
        if name is None:
            return
        self._join_in_the_middle(name)
        if self.get("control") == "paused":
            self.changes["control"] = None
        self._change_phase(
            name,
            done=number(event.get("done")),
            total=number(event.get("total")),
            unit=text(event.get("unit"), 40),
            rate=number(event.get("rate")),
            eta_seconds=number(event.get("eta_seconds")),
        )

    def _memory(self, event: Event) -> None:
        name = self._phase_of(event)
        is_planned = name is None or takes_planned_memory(name, self.get("choices"))
        memory = Memory(
            bytes=budgeted(event) if is_planned else None,
            peak_bytes=budgeted(event, "peak_bytes") if is_planned else None,
            budget_bytes=number(event.get("budget_bytes")) if is_planned else None,
            device_bytes=number(event.get("device_bytes")),
            system_available_bytes=number(event.get("system_available_bytes")),
            ranks=_ranks(event.get("ranks")),
        )
        self.changes["memory"] = memory
        if memory.bytes is not None:
            self.memory_samples.append((self._worked(), 0.0, memory.bytes))
        if name is not None:
            self._join_in_the_middle(name)
            known = self.phases[name].peak_bytes
            peak = max(
                (p for p in (known, budgeted(event), budgeted(event, "peak_bytes")) if p is not None), default=None
            )
            if peak != known:
                self._change_phase(name, peak_bytes=peak)

    def _metric(self, event: Event) -> None:
        step = number(event.get("step"))
        if step is not None:
            self.changes["step"] = step
        if (total := number(event.get("total_steps"))) is not None:
            self.changes["total_steps"] = total
        worked = self._worked()
        for name, samples in self.metric_samples.items():
            value = number(event.get(name))
            if value is not None:
                samples.append((worked, step or 0.0, value))

    def _evaluation(self, event: Event) -> None:
        values = {key: value for key, entry in event.items() if key != "time" and (value := number(entry)) is not None}
        step = values.get("step", self.get("step") or 0.0)
        evaluation = Evaluation(self._worked(), step, text(event.get("which")), values)
        self.changes["evaluations"] = (*self.get("evaluations"), evaluation)

    def _shard(self, event: Event) -> None:
        self.changes["shards"] = self.get("shards") + 1
        self.changes["cached_tokens"] = self.get("cached_tokens") + (number(event.get("tokens")) or 0)
        self.changes["cached_bytes"] = self.get("cached_bytes") + (number(event.get("bytes")) or 0)

    def _checkpoint(self, event: Event) -> None:
        self.changes["checkpoint_step"] = number(event.get("step"))
        self.changes["checkpoint_bytes"] = number(event.get("bytes"))

    def _control(self, event: Event) -> None:
        if "state" in event:
            state = event["state"]
            self.changes["control"] = state if state in ("pausing", "paused", "stopping") else None
        elif event.get("command") == "resume" and event.get("accepted") and self.get("control") != "stopping":
            self.changes["control"] = None

    def _back_off(self, event: Event) -> None:
        self.changes["backing_off"] = True
        self._notice("warning", back_off_words(event))

    def _log(self, event: Event) -> None:
        if event.get("code") == "stage":
            self.changes["stage"] = text(event.get("message"), 60).rstrip(".")
        if event.get("level") in ("warning", "error"):
            self._notice(event["level"], text(event.get("message")))

    def _error(self, event: Event) -> None:
        self.changes["failure"] = Failure(*(text(event.get(part)) for part in ("what", "why", "todo")))

    def _run_finished(self, event: Event) -> None:
        self._close_phases(self.now)
        status = event.get("status")
        code = number(event.get("exit_code"))
        current = self.get("phase")
        if status == "done" and current is not None and self.phases[current].state == "running":
            spent = self.phases[current].earlier_seconds
            self._change_phase(current, state="done", seconds=spent or None, eta_seconds=None)
        self.changes.update(
            finished=status if status in ("done", "failed", "stopped") else "failed",
            exit_code=int(code) if code is not None else None,
            control=None,
            backing_off=False,
        )

    def _notice(self, level: str, sentence: str) -> None:
        self.changes["notices"] = (*self.get("notices"), Notice(self.now, level, sentence))[-100:]


def _ranks(found: object) -> tuple[float, ...]:
    """The memory of each process; what cannot be read is left out."""
    entries = found if isinstance(found, list) else []
    each = (number(entry.get("bytes")) for entry in entries if isinstance(entry, dict))
    return tuple(size for size in each if size is not None)
