"""Words in a place that may be too low for them: if some are left out, a mark names the key that shows all."""

from __future__ import annotations

from textual.content import Content
from textual.geometry import Size
from textual.widgets import Static

_MORE = "… F1 shows all"


class Excerpt(Static):
    """Text of which the end may be cut; the help shows all of it.

    Attributes:
        whole: the text.
        is_cut: whether only its beginning is shown.
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes, markup=False)
        self.whole = Content("")
        self.is_cut = False

    def say(self, words: Content | str) -> None:
        """Show these words, or as many as there is room for."""
        whole = words if isinstance(words, Content) else Content(words)
        if whole.is_same(self.whole):
            return
        self.whole = whole
        self.is_cut = False
        self.update(whole)
        self.call_after_refresh(self._cut)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the lines of the whole text, whatever is shown of it."""
        return len(self.whole.wrap(width)) if width > 0 else 1

    def on_resize(self) -> None:
        """Cut again."""
        self._cut()

    def _cut(self) -> None:
        """Shorten the words to the lines that are seen; the height follows from all of them and stays."""
        width, height = self.content_size
        lines = self.whole.wrap(width) if width > 0 and height > 0 else []
        was_cut, self.is_cut = self.is_cut, len(lines) > height
        if self.is_cut:
            self.update(Content("\n").join([*lines[: height - 1], _last(lines[height - 1], width)]), layout=False)
        elif was_cut:
            self.update(self.whole, layout=False)


def _last(line: Content, width: int) -> Content:
    return Content.assemble(line.rstrip().truncate(max(0, width - len(_MORE) - 1)), " ", _MORE)
