"""A question with a few answers; the safest one has the focus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static


@dataclass(frozen=True)
class Answer:
    """One thing to answer.

    Attributes:
        value: what the asker gets.
        label: the words on the button.
        key: the letter that answers at once; it is shown below the button.
        costs: whether something is lost by it.
    """

    value: str
    label: str
    key: str
    costs: bool = False


class ConfirmScreen(ModalScreen[str | None]):
    """Asks, and gives the answer's value, or None for "stay" (Esc).

    Args:
        title: the question, short.
        body: what it means, a few lines.
        answers: the first has the focus; it should be the one that loses nothing.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stay", "Stay", id="stay"),
        Binding("left,up,h,k", "app.focus_previous", show=False),
        Binding("right,down,l,j", "app.focus_next", show=False),
    ]

    def __init__(self, title: str, body: str, answers: Sequence[Answer]) -> None:
        super().__init__()
        self._question, self._body, self._answers = title, body, answers

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical(id="question", classes="dialog") as box:
            box.border_title = Content(self._question)  # a name may look like markup
            yield Static(self._body, markup=False, id="question-body")
            with Horizontal(id="answers"):
                for answer in self._answers:
                    button = Button(
                        Content(f"{answer.label} ({answer.key})"),
                        id=f"answer-{answer.value}",
                        variant="error" if answer.costs else "default",
                        compact=True,
                    )
                    yield button

    def on_mount(self) -> None:
        """The safest answer has the focus."""
        self.query(Button).first().focus()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        assert event.button.id is not None
        self.dismiss(event.button.id.removeprefix("answer-"))

    @on(events.Resize)
    def _stack(self) -> None:
        """Answers that have no room side by side stand one below the other, so that each is whole."""
        buttons = list(self.query(Button))
        room = self.query_one("#answers").container_size.width
        needed = sum(button.get_content_width(self.size, self.size) + button.gutter.width + 2 for button in buttons)
        self.query_one("#answers").set_class(needed > room, "-stacked")
        self.call_after_refresh(self._show_chosen)

    def _show_chosen(self) -> None:
        if self.focused is not None:
            self.focused.scroll_visible(animate=False)

    def on_key(self, event: events.Key) -> None:
        """An answer's letter answers."""
        for answer in self._answers:
            if event.key == answer.key or event.character == answer.key:
                event.stop()
                self.dismiss(answer.value)
                return

    def action_stay(self) -> None:
        """No answer."""
        self.dismiss(None)
