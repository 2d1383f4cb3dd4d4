"""``tiny-distill-profile``: what two models take with one saving after another, predicted and, if asked, measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from engine import launch
from engine.cli import arguments
from engine.cli.distill import guarded
from engine.format import UNKNOWN, format_bytes, format_duration
from engine.planner.ladder import Rung, ladder
from engine.planner.measure import MachineRates, machine_rates

DESCRIPTION = "Memory, disk and time of two models for a ladder of settings; nothing is trained."


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``tiny-distill-profile``."""
    return guarded(sys.argv[1:] if words is None else words, _main)


def _main(words: Sequence[str]) -> int:
    typed, front_end = arguments.parse(
        words, program="tiny-distill-profile", description=DESCRIPTION, extend=_own_switches
    )
    config = launch.config_from(typed)
    rates = machine_rates(measure=True, threads=config.threads)
    rungs = ladder(config, machine=rates)
    measure = bool(front_end.switches.get("measure"))
    if config.json_events:
        for rung in rungs:
            sys.stdout.write(json.dumps(_as_dict(rung, rates, measure)) + "\n")
            sys.stdout.flush()
        return 0
    _print_table(rungs, rates, measure)
    return 0


def _own_switches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--measure",
        action="store_true",
        help="Run a few steps of each setting in a process of its own, and print what they took beside the prediction",
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

    trial = try_phase(rung.phase, rung.plan, rates)
    if trial.problem:
        return {"measured_peak_bytes": None, "problem": trial.problem}
    return {
        "measured_peak_bytes": trial.peak_bytes,
        "predicted_over_measured": round(trial.predicted_bytes / max(1, trial.peak_bytes), 3),
        "measured_seconds": round(trial.seconds, 2),
        "measured_tokens": trial.tokens,
    }


def _print_table(rungs: list[Rung], rates: MachineRates, measure: bool) -> None:
    console = Console(highlight=False)
    settings = rungs[0].plan.settings
    budget = f"budget {format_bytes(settings.memory_budget)} on {settings.device}"
    console.print(f"{settings.teacher} -> {settings.student}, {settings.precision}, {budget}", markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("phase", "setting", "row", "memory", "", "time", "disk"):
        table.add_column(column, justify="left" if column in ("phase", "setting", "") else "right")
    if measure:
        for column in ("measured", "predicted/measured"):
            table.add_column(column, justify="right")
    for rung in rungs:
        cells = [
            rung.phase,
            rung.label,
            str(rung.plan.settings.sequence_length),
            format_bytes(rung.predicted.peak_bytes),
            "fits" if rung.fits else "too much",
            f"{format_duration(rung.predicted.seconds)} ± {format_duration(rung.predicted.seconds_error)}",
            format_bytes(rung.plan.disk_bytes),
        ]
        if measure:
            found = _measured(rung, rates)
            peak = found["measured_peak_bytes"]
            cells += [
                format_bytes(peak) if peak else str(found.get("problem")),
                f"{found['predicted_over_measured']:.2f}" if peak else UNKNOWN,
            ]
        table.add_row(*cells)
    console.print(table)
    if not rates.measured:
        console.print("Times are rough: this machine could not be measured.", markup=False)
