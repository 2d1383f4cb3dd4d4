"""Lines of the log in a window that scrolls: selectable, follows the end, marks the matches.

It gets the lines to show and only draws the visible ones; the owner of the filter filters them.
"""

from __future__ import annotations

import re
import time
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from engine.channel.words import LogLine

_PREFIX = len("12:58:04 warning ")


class LogView(ScrollView, can_focus=True):
    """The window onto the log.

    Attributes:
        follow: the end stays visible when lines are added; scrolling up turns it off.
        pattern: what is marked.
        current: index of the match that ``n`` and ``N`` have gone to.
    """

    hint = "Closing this window is safe: the run continues. Come back: tinydistill-tui"
    HELP = "The log: what happened, newest last. The whole of it is in run.log in the run's folder."
    ALLOW_SELECT = True
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "log--time",
        "log--info",
        "log--debug",
        "log--warning",
        "log--error",
        "log--match",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False),
        Binding("k", "scroll_up", "Up", show=False),
        Binding("h", "scroll_left", "Left", show=False),
        Binding("l", "scroll_right", "Right", show=False),
    ]

    follow: reactive[bool] = reactive(True)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.lines: list[LogLine] = []
        self.pattern: re.Pattern[str] | None = None
        self.current: int | None = None
        self._widest = 0
        self._growing = False
        self.instead = ""

    def replace_lines(self, lines: list[LogLine]) -> None:
        """Show other lines."""
        self.lines = lines
        self.current = None
        self._widest = max((cell_len(line.text) for line in lines), default=0)
        self._resized()

    def add_lines(self, lines: list[LogLine], most: int) -> None:
        """Show more lines below; of more than ``most`` the oldest go."""
        self.lines.extend(lines)
        excess = max(0, len(self.lines) - most)
        if excess:
            del self.lines[:excess]
            self.current = None
        self._widest = max(self._widest, max((cell_len(line.text) for line in lines), default=0))
        self._resized()

    def go_to(self, index: int) -> None:
        """Bring a line into sight and mark it as the current match."""
        self.current = index
        self.follow = False
        self.scroll_to(y=max(0, index - self.size.height // 2), animate=False)
        self.refresh()

    def text_of(self, line: LogLine) -> str:
        """The line as it is shown and copied."""
        return f"{_clock(line.time)} {line.level:7} {line.text}"

    def watch_follow(self, follow: bool) -> None:
        """Go to the end when following begins."""
        if follow:
            self.scroll_end(animate=False, immediate=True, x_axis=False)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Scrolling up stops following; reaching the end resumes it."""
        super().watch_scroll_y(old_value, new_value)
        if not self._growing and round(old_value) != round(new_value):
            self.follow = new_value >= self.max_scroll_y

    def on_resize(self) -> None:
        """Keep the end visible."""
        if self.follow:
            self._to_end()

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text."""
        return selection.extract("\n".join(self.text_of(line) for line in self.lines)), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        """Draw the selection."""
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One visible line."""
        scroll_x, scroll_y = self.scroll_offset
        width = self.size.width
        number = scroll_y + y
        if not self.lines and y == 0 and self.instead:
            return Strip([Segment(self.instead, self.get_component_rich_style("log--time"))]).adjust_cell_length(width)
        if number >= len(self.lines):
            return Strip.blank(width, self.rich_style)
        whole = self._strip(number)
        strip = whole.crop_extend(scroll_x, scroll_x + width, self.rich_style)
        mark = Strip([Segment("…", self.get_component_rich_style("log--time"))])
        seen = self.scrollable_content_region.width  # without the scroll bar
        if whole.cell_length > scroll_x + seen:  # l scrolls on
            strip = Strip.join([strip.crop(0, seen - 1), mark, strip.crop(seen)])
        if scroll_x:  # h scrolls back
            strip = Strip.join([mark, strip.crop(1)])
        return strip.apply_offsets(scroll_x, number)

    def _strip(self, number: int) -> Strip:
        line = self.lines[number]
        clock, level = self.get_component_rich_style("log--time"), self.get_component_rich_style(f"log--{line.level}")
        parts = [Segment(f"{_clock(line.time)} ", clock), Segment(f"{line.level:7} ", level)]
        found = self.get_component_rich_style("log--match")
        plain = self.get_component_rich_style("log--info") if line.level in ("info", "debug") else level
        end = 0
        for match in self.pattern.finditer(line.text) if self.pattern else ():
            if match.end() > match.start():
                parts += [Segment(line.text[end : match.start()], plain), Segment(match[0], found)]
                end = match.end()
        parts.append(Segment(line.text[end:], plain))
        if number == self.current:
            parts = [Segment(part.text, (part.style + found) if part.style else found) for part in parts]
        strip = Strip(parts)
        selection = self.text_selection
        span = selection.get_span(number) if selection is not None else None
        if span is None:
            return strip
        start, stop = span[0], strip.cell_length if span[1] == -1 else span[1]
        style = self.screen.get_component_rich_style("screen--selection")
        before, middle, after = strip.crop(0, start), strip.crop(start, stop), strip.crop(stop)
        return Strip.join([before, middle.apply_style(style), after])

    def _resized(self) -> None:
        self._growing = True
        self.virtual_size = Size(_PREFIX + self._widest, len(self.lines))
        self._growing = False
        if self.follow:
            self._to_end()
            self.call_after_refresh(self._to_end_if_following)  # before the first layout there is no end to go to
        self.refresh()

    def _to_end_if_following(self) -> None:
        if self.follow:
            self._to_end()

    def _to_end(self) -> None:
        self._growing = True
        self.scroll_end(animate=False, immediate=True, x_axis=False)
        self._growing = False


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
