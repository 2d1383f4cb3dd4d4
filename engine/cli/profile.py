"""``tiny-distill-profile``: memory and time of two models with one saving after another, predicted or measured."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from engine.cli import arguments
from engine.cli.distill import guarded
from engine.format import UNKNOWN, format_bytes, format_duration
from engine.machine import hardware
from engine.planner import plan
from engine.planner.ladder import Rung, ladder
from engine.planner.measure import MachineRates
from engine.run import launch

DESCRIPTION = "Show memory, disk and time of two models for a ladder of settings; no model is trained."


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``tiny-distill-profile``."""
    return guarded(sys.argv[1:] if words is None else words, _main)


def _main(words: Sequence[str]) -> int:
    typed, front_end = arguments.parse(
        words, program="tiny-distill-profile", description=DESCRIPTION, extend=_own_switches
    )
    config = launch.config_from(typed)
    settings = plan(config, strict=False).settings  # a wrong request is refused before the probe runs
    rates = launch.measured_rates(settings)
    rungs = ladder(config, machine=rates)
    measure = bool(front_end.switches.get("measure"))
    with _ctrl_c_is_kept() as asked:
        rungs_until_asked = _until(asked, rungs)
        if config.json_events:
            for rung in rungs_until_asked:
                sys.stdout.write(json.dumps(_as_dict(rung, rates, measure)) + "\n")
                sys.stdout.flush()
        else:
            _print_table(rungs, rungs_until_asked, rates, measure)
    return 0


@contextlib.contextmanager
def _ctrl_c_is_kept() -> Iterator[list[int]]:
    """Keep requests to stop until the end of this context, which then raises KeyboardInterrupt.

    Python drops an exception that a destructor or a callback of a C library raises, and a Ctrl-C may come within one.
    """
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        yield asked
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt


def _until(asked: list[int], rungs: Sequence[Rung]) -> Iterator[Rung]:
    for rung in rungs:
        if asked:
            raise KeyboardInterrupt
        yield rung


def _own_switches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--measure",
        action="store_true",
        help="Run a few steps of each setting in a process of its own, and print measured next to predicted values",
    )


def _as_dict(rung: Rung, rates: MachineRates, measure: bool) -> dict[str, Any]:
    settings = rung.plan.settings
    names = ["sequence_length", "precision", "teacher_batch", "layer_by_layer"]
    if rung.phase == "student":
        names = [
            *names[:2],
            "student_batch",
            "gradient_accumulation",
            "gradient_checkpointing",
            "optimizer",
            "student_layers",
        ]
    found: dict[str, Any] = {
        "phase": rung.phase,
        "label": rung.label,
        "settings": {name: getattr(settings, name) for name in names},
        "predicted_peak_bytes": rung.predicted.peak_bytes,
        "parts": dict(rung.predicted.parts),
        "predicted_seconds": rung.predicted.seconds,
        "seconds_error": rung.predicted.seconds_error,
        "disk_bytes": rung.plan.disk_bytes,
        "fits": rung.fits,
    }
    if measure:
        found |= _measured(rung, rates)
    return found


def _measured(rung: Rung, rates: MachineRates) -> dict[str, Any]:
    from engine.cli.trial import try_phase  # brings numpy and h5py, which a prediction does not need

    free = hardware.available_bytes()
    if rung.predicted.ram_bytes > free:  # the kernel would kill it, or the machine would hardly respond
        return {"measured_peak_bytes": None, "problem": f"not measured: only {format_bytes(free)} are free"}
    trial = try_phase(rung.phase, rung.plan, rates)
    if trial.problem:
        return {"measured_peak_bytes": None, "problem": trial.problem}
    return {
        "measured_peak_bytes": trial.peak_bytes,
        "predicted_for_measured_bytes": trial.predicted_bytes,
        "predicted_over_measured": round(trial.predicted_bytes / max(1, trial.peak_bytes), 3),
        "measured_seconds": round(trial.seconds, 2),
        "measured_tokens": trial.tokens,
    }


def _print_table(rungs: list[Rung], one_by_one: Iterator[Rung], rates: MachineRates, measure: bool) -> None:
    settings = rungs[0].plan.settings
    budget = f"budget {format_bytes(settings.memory_budget)} on {settings.device}"
    print(f"{settings.teacher} -> {settings.student}")
    print(f"rows of {settings.sequence_length} tokens, {settings.precision}, {budget}")
    print()
    columns = _Columns(rungs, measure)
    print(columns.line(columns.titles), flush=True)
    is_short_run = False
    for rung in one_by_one:
        found = _measured(rung, rates) if measure else {}
        peak = found.get("measured_peak_bytes")
        print(columns.line(_cells(rung, measure, found)), flush=True)  # each as it comes: one takes some ten seconds
        if found.get("problem"):
            print(f"  {found['problem']}")
        elif peak:
            is_short_run |= abs(found["predicted_for_measured_bytes"] / rung.predicted.peak_bytes - 1) > _NOTABLE
    print()
    if measure:
        said = " for the few thousand tokens of a measurement" if is_short_run else ""
        print(f"ratio: predicted to measured{said}")
    if not rates.measured:
        print("Times are rough: this machine could not be measured.")
    if not any(rung.fits for rung in rungs if rung.phase == "teacher"):
        print("No setting of the teacher fits the budget.")
    if not any(rung.fits for rung in rungs if rung.phase == "student"):
        print("No setting of the student fits the budget.")


_NOTABLE = 0.02


def _cells(rung: Rung, measure: bool, found: dict[str, Any]) -> list[str]:
    predicted = rung.predicted
    cells = [rung.phase, rung.label, format_bytes(predicted.peak_bytes), "fits" if rung.fits else "too much"]
    if measure:
        peak = found.get("measured_peak_bytes")
        return [*cells, format_bytes(peak), f"{found['predicted_over_measured']:.2f}" if peak else UNKNOWN]
    time = f"{format_duration(predicted.seconds)} ± {format_duration(predicted.seconds_error)}"
    return [*cells, time, format_bytes(rung.plan.disk_bytes)]


class _Columns:
    """Columns as wide as what is in them, known before the first row is measured."""

    def __init__(self, rungs: list[Rung], measure: bool) -> None:
        self.titles = ["phase", "setting", "memory", ""]
        self.titles += ["measured", "ratio"] if measure else ["time", "disk"]
        rows = [self.titles, *(_cells(rung, measure, {}) for rung in rungs)]
        self._widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(self, cells: list[str]) -> str:
        """One row: words to the left, numbers to the right."""
        padded = [
            cell.ljust(width) if number in (0, 1, 3) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, self._widths, strict=True))
        ]
        return "  ".join(padded).rstrip()
