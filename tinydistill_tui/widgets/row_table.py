"""A table whose rows are chosen: Home and End go to the first and the last row, not to a column."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import DataTable


class RowTable(DataTable[Content]):
    """Textual's table with the keys of a list."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("home", "scroll_top", "First", show=False, tooltip="The first row"),
        Binding("end", "scroll_bottom", "Last", show=False, tooltip="The last row"),
    ]
