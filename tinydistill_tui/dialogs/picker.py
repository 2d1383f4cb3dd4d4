"""Looks for a file or a folder: a tree, and the path above it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import DirectoryTree, Input, Static

from engine.data.sources import SHOWN_SUFFIXES
from engine.disk.named_path import named_path
from engine.disk.places import home
from engine.errors import FolderError
from engine.model_files import on_disk


class _Tree(DirectoryTree):
    """Folders, and for data the files that can be read."""

    def __init__(self, path: Path, suffixes: tuple[str, ...]) -> None:
        super().__init__(path, id="picker-tree")
        self._suffixes = suffixes

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        """Nothing hidden, and no file that cannot be meant."""
        return [path for path in paths if not path.name.startswith(".") and self._wanted(path)]

    def _wanted(self, path: Path) -> bool:
        return os.path.isdir(path) or path.name.lower().endswith(self._suffixes)


class PickerScreen(ModalScreen[str | None]):
    """Gives the chosen path, or None.

    Args:
        title: what is looked for.
        begin: where to begin; when it is no path, where this program was started.
        wanted: "model" (see :func:`engine.model_files.on_disk.is_model`) or "data" (a file or a folder).
    """

    AUTO_FOCUS = "#picker-tree"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", id="picker-close"),
        Binding("c", "choose", "Choose", id="picker-choose"),
        Binding("backspace", "up", "Folder above", id="picker-up"),
    ]

    def __init__(self, title: str, begin: str, *, wanted: str) -> None:
        super().__init__()
        self._title = title
        self._model = wanted == "model"
        self._begin = _folder_of(begin)

    def compose(self) -> ComposeResult:
        """Path, tree, and what the keys do."""
        suffixes = on_disk.SHOWN if self._model else SHOWN_SUFFIXES
        with Vertical(id="picker", classes="dialog") as box:
            box.border_title = Content(self._title)  # a name may look like markup
            yield Input(str(self._begin), id="picker-path", compact=True)
            yield _Tree(self._begin, suffixes)
            what = "a model" if self._model else "a file or a folder"
            yield Static(f"↵ opens · c chooses {what} · Backspace: up · Tab: path · Esc", markup=False)

    @on(Input.Submitted)
    def _go(self, event: Input.Submitted) -> None:
        try:
            path = named_path(event.value)
        except FolderError as error:
            self.notify(error.paragraph(), severity="warning", markup=False)
            return
        if path.is_file():
            self._take(path)
        elif path.is_dir():
            tree = self.query_one(_Tree)
            tree.path = path
            tree.focus()
        else:
            self.notify(f"There is no {path}.", severity="warning", markup=False)

    @on(DirectoryTree.FileSelected)
    def _file(self, event: DirectoryTree.FileSelected) -> None:
        self._take(event.path)

    def action_choose(self) -> None:
        """Take what the cursor is on."""
        node = self.query_one(_Tree).cursor_node
        if node is not None and node.data is not None:
            self._take(node.data.path)

    def _take(self, path: Path) -> None:
        if self._model and path.is_file() and not on_disk.is_model_file(path):
            path = path.parent
        if self._model and not on_disk.is_model(path):
            said = f"{path} is not a model: it has none of {on_disk.ONE_OF}."
            self.notify(said, severity="warning", markup=False)
            return
        self.dismiss(str(path))

    def action_up(self) -> None:
        """Show the folder above."""
        tree = self.query_one(_Tree)
        tree.path = Path(tree.path).absolute().parent
        self.query_one("#picker-path", Input).value = str(tree.path)

    def action_close(self) -> None:
        """Nothing was chosen."""
        self.dismiss(None)


def _folder_of(name: str) -> Path:
    """The folder of a path, or its parent; else the current one, or home where that is gone."""
    name = os.path.expanduser(name or ".")
    for place in (name, os.path.dirname(name), "."):
        if place and os.path.isdir(place):
            return Path(os.path.abspath(place))
    return home()
