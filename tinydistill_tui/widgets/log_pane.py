"""The log of a run: its window, a field to look for words, and a title that says what is shown of how much."""

from __future__ import annotations

from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input

from engine.channel.words import LogLine
from engine.format import format_count
from tinydistill_tui.view.log_filter import LogFilter
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.view.watch import MAX_LOG_LINES
from tinydistill_tui.widgets.log_view import LogView

FILTERED_FILE = "log-filtered.txt"


class FilterField(Input):
    """Where the words are typed."""

    hint = "Only matching lines. Enter marks them instead (n and N move on), Esc clears."


class LogPane(Vertical):
    """Shows a RunView's log through a filter."""

    ALLOW_MAXIMIZE = True

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, classes="pane")
        self.filter = LogFilter()
        self.keep_all = False
        self._log: tuple[LogLine, ...] = ()
        self._taken = 0
        self._total = 0
        self._unseen = 0

    def compose(self) -> ComposeResult:
        """The window, and below it the field, which is there only while it is used."""
        yield LogView(id="log-lines")
        field = FilterField(placeholder="words, or /regular expression/", compact=True, id="log-filter")
        field.display = False
        yield field

    def on_mount(self) -> None:
        """Keep the title true."""
        self.watch(self.window, "follow", self._retitle)

    @property
    def window(self) -> LogView:
        """The window onto the lines."""
        return self.query_one(LogView)

    def show(self, view: RunView) -> None:
        """Take what is new in the view."""
        total = view.log_dropped + len(view.log)
        self._log = view.log
        if total < self._taken:  # another run, or the file was replaced
            self._taken = 0
            self.window.replace_lines([])
        if total > self._taken:
            fresh = self.filter.shown(view.log[-(total - self._taken) :], keep_all=self.keep_all)
            self._unseen = 0 if self.window.follow else self._unseen + len(fresh)
            self.window.add_lines(fresh, MAX_LOG_LINES)
            self._taken = total
        self._total = total
        self._retitle()

    def _say_if_empty(self) -> None:
        """An empty pane says what hides every line, and the key that shows them again."""
        self.window.instead = self.filter.nothing() if self._total and not self.window.lines else ""
        self.window.refresh()

    def set_level(self, level: str) -> None:
        """Show lines of at least this level."""
        self.filter = self.filter.with_level(level)
        self._refilter()

    def open_field(self) -> None:
        """Begin to look for words."""
        field = self.query_one(FilterField)
        field.display = True
        field.focus()

    def close_field(self) -> bool:
        """Show everything again and leave the field; False when there was nothing to leave."""
        field = self.query_one(FilterField)
        if not field.display:
            return False
        if field.has_focus or not self.keep_all:
            self.window.focus()
        with field.prevent(Input.Changed):
            field.value = ""
        field.display = False
        self.filter, self.keep_all = self.filter.with_typed(""), False
        self._refilter()
        return True

    def go_to_match(self, step: int) -> bool:
        """Go to the next match (1) or the one before (-1); False when there is none."""
        lines = self.window.lines
        if self.filter.pattern is None or not lines:
            return False
        at = self.window.current
        start = at if at is not None else (-1 if step > 0 else len(lines))
        for distance in range(1, len(lines) + 1):
            index = (start + step * distance) % len(lines)
            if self.filter.finds(lines[index]):
                self.window.go_to(index)
                return True
        return False

    def go_to_last_error(self) -> None:
        """Bring the newest error into sight."""
        for index in range(len(self.window.lines) - 1, -1, -1):
            if self.window.lines[index].level == "error":
                self.window.go_to(index)
                break
        self.window.focus()

    def text(self) -> str:
        """The shown lines, as text."""
        return "".join(f"{self.window.text_of(line)}\n" for line in self.window.lines)

    def write(self, folder: Path) -> Path:
        """Write the shown lines into the run's folder; returns the file.

        Raises:
            OSError: it cannot be written.
        """
        path = folder / FILTERED_FILE
        path.write_text(self.text(), encoding="utf-8")
        return path

    @on(Input.Changed, "#log-filter")
    def _typed(self, event: Input.Changed) -> None:
        self.keep_all = False
        self.filter = self.filter.with_typed(event.value)
        event.input.set_class(bool(self.filter.bad), "-bad")
        self._refilter()

    @on(Input.Submitted, "#log-filter")
    def _mark_instead(self) -> None:
        self.keep_all = self.filter.pattern is not None
        self._refilter()
        self.window.focus()
        self.go_to_match(-1)

    def _refilter(self) -> None:
        self._unseen = 0
        self.window.pattern = self.filter.pattern
        self.window.replace_lines(self.filter.shown(self._log, keep_all=self.keep_all))
        self._retitle()

    def _retitle(self) -> None:
        self._say_if_empty()
        if self.filter.bad:
            following = f"✗ no regular expression: {self.filter.bad}"
        elif self.window.follow:
            following = "following"
        else:
            following = "paused" + (f", {format_count(self._unseen)} new" if self._unseen else "")
        count = f"{format_count(len(self.window.lines))} of {format_count(self._total)} lines"
        self.border_title = Content(" ── ".join(("Log", self.filter.words(), following, count)))
