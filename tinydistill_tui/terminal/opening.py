"""The first frame: the first rows of the screen that comes, drawn before the engine and the screens are imported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from textual.containers import Container
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from tinydistill_tui.widgets.title_row import Rule, TitleRow, stepper

PURPOSE = "Teach a small language model with a big one, on this machine."


def first_rows(run_path: Path | None) -> Iterable[Widget]:
    """The title and the rule of the first screen, and the beginning of its content.

    Args:
        run_path: the run that is watched; None where the wizard comes.
    """
    title = TitleRow(id="title")
    title.left = stepper(1) if run_path is None else Content.assemble((run_path.name, "bold"), "  opening…")
    yield title
    yield Rule(id="rule")
    with Container(id="content", classes="first-frame"):
        if run_path is None:
            yield Static(PURPOSE, id="purpose", markup=False)
            yield Static("This machine", classes="heading")
            yield Static("measuring…", id="machine", markup=False)
