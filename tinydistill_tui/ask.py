"""``--ask``: the wizard's questions, one line at a time, for screen readers, slow lines and simple terminals.

The same settings with the same checks and messages; nothing is drawn, and no line is changed later.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from engine.data.left_out import MostlyLeftOut
from engine.errors import Stopped
from engine.format import format_bytes
from engine.planner.summary import cautions, summary
from engine.run import launch
from engine.settings.config import SETTINGS, RunConfig, check_value

QUESTIONS = ("teacher", "student", "data", "memory_budget", "samples", "epochs")
_YES, _NO = ("", "y", "yes"), ("n", "no")


def ask(
    values: dict[str, Any], *, read: Callable[[str], str] = input, write: Callable[[str], object] | None = None
) -> RunConfig:
    """Ask for what was not given, then whether to start.

    Args:
        values: settings that were given already; they are not asked for.
        read: shows a prompt and gives the line that was typed.
        write: takes one line of text; printed in the terminal's width unless given.

    Returns:
        Everything that was answered; what was left empty is the planner's.

    Raises:
        TinyDistillError: the answers contradict each other, or the user does not want to start.
    """
    answers: dict[str, Any] = dict(values)
    write = write or _print
    write("Leave a line empty to let the planner choose. Ctrl+C leaves without starting anything.")
    for name in QUESTIONS:
        if name not in answers and not answers.get("demo"):
            text = _answer(name, read, write)
            if text:
                answers[name] = text
    config = RunConfig.parse({**answers, "use_recommended": True})
    if not config.dry_run:
        for line in _plan_lines(config):
            write(line)
        if _leaves_out_most(config):
            if _line(read, "Continue without the documents that are left out? [y/N] ").lower() not in ("y", "yes"):
                raise Stopped("Nothing was started.", "", "The same command asks again.")
            config = config.with_values({"allow_losses": True})
        while (word := _line(read, "Start? [Y/n] ").lower()) not in (*_YES, *_NO):
            write(f"{word}: expected yes or no.")
        if word in _NO:
            raise Stopped("Nothing was started.", "", "The same command asks again.")
    return config


def _print(sentence: str) -> None:
    """Print a sentence; the lines of a narrow terminal end between two words."""
    width = shutil.get_terminal_size().columns
    lines = textwrap.fill(sentence, max(20, width - 1), break_long_words=False, break_on_hyphens=False)
    sys.stdout.write(lines + "\n")
    sys.stdout.flush()


def _plan_lines(config: RunConfig) -> list[str]:
    """Return the run's work and predictions.

    Raises:
        TinyDistillError: the run cannot be started, or does not fit; the reason is the answer.
    """
    planned = launch.checked_plan(config)
    lines = [*summary(planned), *cautions(planned)]
    budget = planned.settings.memory_budget
    peak = max((figures.peak_bytes for figures in planned.predicted.values()), default=0)
    if peak and budget:
        lines.append(f"It takes up to {format_bytes(peak)} of memory; the budget is {format_bytes(budget)}.")
    found = launch.look_at_text(planned.settings)
    if found is not None:
        lines += filter(None, (found.left_out.sentences() if found.left_out is not None else "", *found.notes))
    return lines


def _leaves_out_most(config: RunConfig) -> bool:
    try:
        launch.check_losses(config)
    except MostlyLeftOut:
        return True
    return False


def _answer(name: str, read: Callable[[str], str], write: Callable[[str], object]) -> str:
    info = SETTINGS[name]
    write(f"{info.help}.")
    while True:
        text = _line(read, f"{name}: ")
        wrong = check_value(name, text) if text else None
        if wrong is None:
            return text
        write(f"{name} {text}: {wrong}.")


def _line(read: Callable[[str], str], prompt: str) -> str:
    try:
        return read(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        raise Stopped("Nothing was started.", "", "The same command asks again.") from None
