"""A form's fields: a line of text for a setting, and a line of choices; each knows what it is for.

They show text and report changes; they do not know what a value means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from textual.app import RenderResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Input

from engine.settings.config import SETTINGS


class TextField(Input):
    """One line for one setting.

    Args:
        setting: name of the setting.
        value: what is there already.
        hint: the sentence above the keys; the setting's own help when not given.

    Attributes:
        problem: what is wrong with it; empty if it is valid or was not checked.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Next", key_display="↵", id="field-next", tooltip="On, or to the first bad field"),
    ]

    def __init__(self, setting: str, value: str = "", *, hint: str = "", **options: Any) -> None:
        options = {"id": f"field-{setting}", **options}
        super().__init__(value, compact=True, select_on_focus=False, **options)
        self.setting = setting
        self.problem = ""
        self._hint = hint

    @property
    def hint(self) -> str:
        """Return the purpose of the field."""
        return self._hint or (SETTINGS[self.setting].help + "." if self.setting in SETTINGS else "")

    def on_mount(self) -> None:
        """Nothing blinks where nothing should move."""
        self.cursor_blink = self.app.animation_level != "none"


class ChoiceLine(Widget, can_focus=True):
    """A few choices in one line; the arrows and Space take the next one.

    Args:
        setting: name of the setting.
        choices: value and words of each.
        value: the one that is chosen.
        hint: the sentence above the keys; the setting's own help when not given.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,right", "choose(1)", "Change", key_display="Space", id="choice-next", tooltip="The next choice"),
        Binding("left", "choose(-1)", "Choice before", show=False, id="choice-before", tooltip="The choice before"),
    ]
    value: reactive[str] = reactive("")

    @dataclass
    class Changed(Message):
        """The user chose."""

        line: ChoiceLine
        value: str

        @property
        def control(self) -> ChoiceLine:
            """The line."""
            return self.line

    def __init__(
        self, setting: str, choices: Sequence[tuple[str, str]], value: str, *, hint: str = "", **options: Any
    ) -> None:
        super().__init__(**{"id": f"choice-{setting}", **options})
        self.setting = setting
        self._choices = list(choices)
        self._hint = hint
        self.set_reactive(ChoiceLine.value, value)

    @property
    def hint(self) -> str:
        """Return the subject of the choice."""
        return self._hint or (SETTINGS[self.setting].help + "." if self.setting in SETTINGS else "")

    def take(self, value: str) -> None:
        """Choose a value, as the user would."""
        if value != self.value:
            self.value = value
            self.post_message(self.Changed(self, value))

    def offer(self, setting: str, choices: Sequence[tuple[str, str]], value: str) -> None:
        """Show the choices of another setting."""
        self.setting, self._choices = setting, list(choices)
        self.value = value
        self.refresh()

    def render(self) -> RenderResult:
        """Every choice with its button."""
        parts: list[Any] = []
        for value, words in self._choices:
            chosen = value == self.value
            style = ("bold reverse" if self.has_focus else "bold") if chosen else "$text-quiet"
            parts += [(f"({'•' if chosen else ' '}) {words}", style), "   "]
        return Content.assemble(*parts[:-1])

    def action_choose(self, step: int) -> None:
        """Take the next choice, or the one before."""
        values = [value for value, _ in self._choices]
        place = values.index(self.value) + step if self.value in values else 0
        self.value = values[place % len(values)]
        self.post_message(self.Changed(self, self.value))
