"""The machine and this installation in a page that can be copied: what to send along with a question."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from engine.disk import places
from engine.disk.runs import default_runs_path
from engine.settings import profiles
from engine.version import __version__
from tinydistill_tui.navigation import Program
from tinydistill_tui.work.draft import draft_path

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "h5py", "bitsandbytes", "textual", "datasets")


class PageScreen(ModalScreen[None]):
    """Shows a text whole; the arrows scroll.

    Args:
        title: what it is.
        text: the page.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,d,enter", "close", "Close", key_display="Esc", id="details-close"),
        Binding("y", "copy", "Copy", id="details-copy", tooltip="Copy the page"),
    ]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title = title
        self.text = text

    def compose(self) -> ComposeResult:
        """The box."""
        with VerticalScroll(id="details", classes="dialog") as box:
            box.border_title = Content(self._title)  # a name may look like markup
            box.border_subtitle = "y copies · Esc closes"
            yield Static(self.text, markup=False)

    def on_mount(self) -> None:
        """The arrows scroll."""
        self.query_one("#details").focus()

    def action_copy(self) -> None:
        """Copy the page."""
        cast(Program, self.app).copy(self.text, "the page")

    def action_close(self) -> None:
        """Back to the start."""
        self.dismiss(None)


class DetailsScreen(PageScreen):
    """The machine, versions and folders.

    Args:
        lines: the machine, a line for each thing it has.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("Details", "\n".join([*lines, "", *installation_lines()]))


def installation_lines() -> list[str]:
    """Versions, read without loading anything, and where things are kept."""
    lines = [
        f"TinyDistill {__version__}, Python {platform.python_version()}, {platform.platform()}",
        "Libraries   " + ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES),
        f"Interpreter {sys.executable}",
        f"Runs        {default_runs_path()}",
        f"Profiles    {profiles.folder()}",
        f"Answers     {draft_path()}",
        f"Errors of the screens: {places.state() / 'ui-crash.log'}",
    ]
    return lines


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
