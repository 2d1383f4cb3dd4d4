"""One text sample at a time: a prompt, continued by the student before, the student after and the teacher."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

_NAMES = ("prompt", "before", "after", "teacher")


class SampleBox(Widget):
    """Shows the samples of a report.

    Args:
        samples: each with prompt, before, after, teacher; on one line each.
    """

    def __init__(self, samples: Sequence[dict[str, str]], *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._samples = samples
        self._number = 0

    def on_mount(self) -> None:
        """Say which sample this is."""
        if not self._samples:
            self.display = False
        self.turn(0)

    def turn(self, step: int) -> None:
        """Show the sample ``step`` further."""
        if self._samples:
            self._number = (self._number + step) % len(self._samples)
            self.border_title = Content(f"Samples ── {self._number + 1} of {len(self._samples)} ── ← →")
            self.refresh()

    def render(self) -> RenderResult:
        """One line for each, or more where there is room."""
        if not self._samples:
            return Content("")
        sample = self._samples[self._number]
        width, lines_each = self.size.width - 9, max(1, self.size.height // len(_NAMES))
        rows = []
        for name in _NAMES:
            words = Content(sample[name])
            lines = words.wrap(max(1, width))[:lines_each] if lines_each > 1 else [words.truncate(width, ellipsis=True)]
            for number, line in enumerate(lines):
                head = name.ljust(9) if number == 0 else " " * 9
                rows.append(Content.assemble((head, "$text-quiet"), line.stylize("bold") if name == "after" else line))
        return Content("\n").join(rows)
