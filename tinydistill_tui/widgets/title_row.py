"""The first row of a screen: what this is on the left, how it stands on the right; and the rule below it."""

from __future__ import annotations

from rich.cells import set_cell_size
from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

STEPS = ("Start", "Models", "Data", "Plan", "Run")


class TitleRow(Widget):
    """One line with a left and a right end; the right end goes first when there is no room for both."""

    left: reactive[Content] = reactive(Content(""), layout=False)
    right: reactive[str] = reactive("")

    def render(self) -> RenderResult:
        """Both ends, or the left one cut to the width."""
        width = self.size.width
        left = self.left
        gap = width - left.cell_length - len(self.right)
        if self.right and gap >= 2:
            return Content.assemble(left, " " * gap, (self.right, "$text-quiet"))
        return left.truncate(width, ellipsis=True)


class Rule(Widget):
    """A line from edge to edge."""

    def render(self) -> RenderResult:
        """The line."""
        return Content.styled(set_cell_size("─" * self.size.width, self.size.width), "$panel-lighten-2")


def stepper(number: int) -> Content:
    """The name of the program and its steps, the present one in brackets."""
    parts: list[str | tuple[str, str]] = [("TinyDistill   ", "bold")]
    for place, name in enumerate(STEPS, start=1):
        here = place == number
        words = f"[{place} {name}]" if here else f"{place} {name}"
        parts.append((words, "bold $text-accent" if here else "$text-quiet"))
        parts.append((" · ", "$text-quiet"))
    return Content.assemble(*parts[:-1])
