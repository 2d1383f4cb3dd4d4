"""Display of a run's result on the terminal: improvement, memory and time, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from engine.cli.console import Console
from engine.cli.progress import wants_lines
from engine.format import format_bytes
from engine.phase_kinds import PHASES, phase_noun
from engine.run.afterwards import FILE, about_the_student, next_steps
from engine.run.report import MEASURES, compute_unit, cost_in_words, one_line, speed_in_words
from engine.student.verdict import details, headline


def show_result(report: dict[str, Any], path: Path) -> None:
    """Print the before/after table, the samples, and the commands for the next steps."""
    # None lets rich find out; where lines of text are wanted there are no codes, also on a terminal.
    console = Console(highlight=False, force_terminal=False if wants_lines(plain=False) else None)
    console.print()
    console.print(headline(report), style="bold", markup=False)
    console.print(_table(report))
    for sentence in details(report):
        console.print(sentence, markup=False, soft_wrap=True)
    for phase in PHASES[1:]:
        figures, word = report["phases"][phase], phase_noun(phase)
        console.print(f"{word}: {cost_in_words(figures)}", markup=False)
        if speed := speed_in_words(figures, compute_unit(report)):
            console.print(f"       {speed}", markup=False, soft_wrap=True)
    cache = report["cache"]
    console.print(
        f"records: {cache['tokens']:,} tokens in {format_bytes(cache['bytes'])}, "
        f"{cache['bytes_per_token']:.1f} bytes a token",
        markup=False,
    )
    for sample in report["samples"][:1]:
        console.print()
        for name in ("prompt", "teacher", "before", "after"):
            console.print(f"{name:>8}  {one_line(sample[name])}", markup=False, soft_wrap=True)
    console.print()
    steps = {step.key: step.line for step in next_steps(report, path)}
    lines = [
        *about_the_student(report, path),
        f"The report:  {path / 'report.md'}",
        f"Talk to it:  {steps['talk']}",
        *[f"{word:12} {steps[key]}" for word, key in (("Longer:", "longer"), ("Again:", "again")) if key in steps],
        f"More:        {path / FILE} (transformers, llama.cpp, Ollama, a second student)",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _table(report: dict[str, Any]) -> Table:
    table = Table(title="", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("hold-out")
    for column in ("teacher", "student before", "student after"):
        table.add_column(column, justify="right")
    for measure in MEASURES:
        table.add_row(
            measure.title,
            *(measure.shown(report[who].get(measure.key)) for who in ("teacher", "student_before", "student_after")),
        )
    return table
