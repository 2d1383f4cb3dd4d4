"""Asks for a name, or for something else that fits a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from engine.errors import SettingsError, TinyDistillError


class NameScreen(ModalScreen[str | None]):
    """Gives the name, or None.

    Args:
        title: what is named.
        name: the text at first.
        act: uses the name; its error is shown and the name can be corrected.
        words: the text below the line.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "close", "Close", id="name-close")]

    def __init__(
        self, title: str, name: str, act: Callable[[str], object], words: str = "↵ takes it · Esc leaves it"
    ) -> None:
        super().__init__()
        self._title, self._name_at_first, self._act, self._words = title, name, act, words

    def compose(self) -> ComposeResult:
        """The line, and a place for what is wrong."""
        with Vertical(id="naming", classes="dialog") as box:
            box.border_title = Content(self._title)  # a name may look like markup
            yield Input(self._name_at_first, id="name", compact=True)
            yield Static(self._words, id="name-words", markup=False)

    @on(Input.Submitted)
    def _named(self, event: Input.Submitted) -> None:
        name = event.value.strip()
        try:
            self._act(name)
        except SettingsError as error:
            problem = error.problems[0]
            self._say(f"{problem.setting} {problem.value}: {problem.accepted}.")
        except TinyDistillError as error:
            self._say(error.paragraph())
        except OSError as error:
            self._say(f"It cannot be written: {error.strerror or error}.")
        else:
            self.dismiss(name)

    def _say(self, sentence: str) -> None:
        self.query_one("#name-words", Static).update(sentence)

    def action_close(self) -> None:
        """No name."""
        self.dismiss(None)
