"""Display of the plan on the terminal: predictions, and every setting with its reason."""

from __future__ import annotations

import json
import sys
import time

from rich.table import Table

from engine.cli.console import Console
from engine.data import left_out
from engine.data.survey import Survey
from engine.format import format_bytes, format_duration
from engine.planner import Plan
from engine.planner.summary import cautions, summary
from engine.run import launch
from engine.run.folder import plan_fields
from engine.settings.config import RunConfig


def show_plan(config: RunConfig) -> int:
    """Print the plan of a request and start nothing.

    Raises:
        RequestError: the run could not be started, and would say the same.
        MostlyLeftOut, DoesNotFit: after the plan was printed.
    """
    planned = launch.checked_plan(config, strict=False)
    found = launch.look_at_text(planned.settings)
    if config.json_events:
        sys.stdout.write(json.dumps({"kind": "plan", **plan_fields(planned)}, ensure_ascii=False) + "\n")
    else:
        print_plan(planned)
    if found is not None:
        _tell(found, as_json=config.json_events)
    launch.check_losses(planned.settings)
    if planned.misfit is not None:
        raise planned.misfit
    return 0


def _tell(found: Survey, *, as_json: bool) -> None:
    """List the parts of the text that are left out or read in another way than their names promise."""
    lost = found.left_out
    told = [("warning", note, "read-as") for note in found.notes]
    if lost is not None and lost.sentences():
        told.insert(0, ("warning" if lost.is_much else "info", lost.sentences(), left_out.CODE))
    for level, message, code in told:
        if as_json:
            event = {"time": round(time.time(), 3), "kind": "log", "level": level, "message": message, "code": code}
            print(json.dumps(event, ensure_ascii=False))
        else:
            print(f"warning: {message}" if level == "warning" else message)


def print_plan(planned: Plan) -> None:
    """The plan as tables for a user."""
    console = Console(highlight=False)
    console.print(" ".join(summary(planned)), markup=False, soft_wrap=True)
    for sentence in cautions(planned):
        console.print(f"warning: {sentence}", markup=False, soft_wrap=True)
    budget = planned.settings.memory_budget
    console.print(
        f" prepare: peak {format_bytes(planned.prepare_bytes)}, about {format_duration(planned.prepare_seconds)} "
        f"(± {format_duration(planned.prepare_seconds_error)})",
        markup=False,
        soft_wrap=True,
    )
    for phase, figures in planned.predicted.items():
        fits = "" if budget is None else f" of {format_bytes(budget)}"
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in figures.parts.items() if size)
        console.print(
            f"{phase:>8}: peak {format_bytes(figures.peak_bytes)}{fits}, about {format_duration(figures.seconds)} "
            f"(± {format_duration(figures.seconds_error)}) · {parts}",
            markup=False,
            soft_wrap=True,
        )
    console.print(f"    disk: {format_bytes(planned.disk_bytes)}", markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("setting", "value", "by", "why"):
        table.add_column(column, overflow="fold")
    for choice in planned.choices:
        value = format_bytes(choice.value) if choice.field.endswith("_budget") and choice.value else str(choice.value)
        table.add_row(choice.field, value, choice.by, choice.reason)
    console.print(table)
