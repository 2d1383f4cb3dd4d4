"""The beginning of the text: first rows as the student will see them, then documents as they were read.

It shows what it is given, one at a time; where rows come from is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from engine.data.document import Document
from engine.data.row_preview import ShownRow
from tinydistill_tui.view import data_facts


class Preview(VerticalScroll, can_focus=True):
    """One row or one document; the arrows left and right take another one."""

    hint = "Left and right: another row or document; up and down: scroll."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "turn(-1)", "Turn", key_display="←→", id="preview-before", tooltip="The previous row or text"),
        Binding("right", "turn(1)", "Next one", show=False, id="preview-next", tooltip="The next row or text"),
    ]

    def __init__(self) -> None:
        super().__init__(id="preview", classes="pane")
        self._rows: Sequence[ShownRow] = ()
        self._documents: Sequence[Document] = ()
        self._note = ""
        self._waits = False
        self._number = 0
        self._turned = False

    def compose(self) -> Iterable[Widget]:
        """The text."""
        yield Static(id="preview-text", markup=False)

    def show_documents(self, documents: Sequence[Document], note: str = "") -> None:
        """Take the documents of a look, or a note where there are none; rows of other text go."""
        self._documents, self._rows, self._note, self._waits = documents, (), note, False
        self._number, self._turned = 0, False
        self._draw()

    def wait_for_rows(self) -> None:
        """Rows are on their way; documents meanwhile."""
        self.show_rows(())
        self._waits = True
        self._draw(stay=True)

    def show_rows(self, rows: Sequence[ShownRow], note: str = "") -> None:
        """Take rows, or the reason why there are none; a document that is being read stays."""
        place = self._number - len(self._rows)
        self._rows, self._note, self._waits = rows, note, False
        reads_on = self._turned and place >= 0
        self._number = len(rows) + place if reads_on else 0
        self._draw(stay=reads_on)

    def action_turn(self, step: int) -> None:
        """Another row or document."""
        there_are = len(self._rows) + len(self._documents)
        if there_are:
            self._number = (self._number + step) % there_are
            self._turned = True
            self._draw()

    def on_resize(self) -> None:
        """The lines between documents are as long as the box is wide."""
        self._draw(stay=True)

    def _draw(self, *, stay: bool = False) -> None:
        text = self.query_one("#preview-text", Static)
        room = max(10, self.size.width - 24)
        self.border_subtitle = ""
        if self._number < len(self._rows):
            row = self._rows[self._number]
            self.border_title = f"First rows  {self._number + 1} of {len(self._rows)}"
            self.border_subtitle = Content(data_facts.row_words(row))
            text.update(data_facts.row_text(row, max(10, self.size.width - 4)))
        elif self._documents:
            number = self._number - len(self._rows)
            document = self._documents[number]
            name = document.name if len(document.name) <= room else document.name[-room:]
            self.border_title = Content(f"Document {number + 1} of {len(self._documents)}  {name}")
            self.border_subtitle = Content("as it was read" + ("; rows are being made" if self._waits else ""))
            text.update(data_facts.preview_text(document, self._note))
        else:
            self.border_title = "Preview"
            text.update(self._note)
        if not stay:
            self.scroll_home(animate=False)
