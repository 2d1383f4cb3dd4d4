"""Which lines of the log are shown: a least level, and words or a regular expression. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from engine.channel.words import LEVELS, LogLine


@dataclass(frozen=True)
class LogFilter:
    """A filter; each change makes a new one.

    Attributes:
        level: the least level that is shown.
        typed: what was typed: words, or ``/.../`` for a regular expression.
        pattern: what is looked for, by the last good ``typed``; None for everything.
        bad: why ``typed`` is no regular expression; the pattern before it still holds.
    """

    level: str = "info"
    typed: str = ""
    pattern: re.Pattern[str] | None = None
    bad: str = ""

    def with_level(self, level: str) -> LogFilter:
        """The same words, another level."""
        return replace(self, level=level)

    def with_typed(self, typed: str) -> LogFilter:
        """The same level, other words; ``/re/`` or an unfinished ``/re`` is a regular expression."""
        if not typed:
            return LogFilter(self.level)
        source = typed[1:].removesuffix("/") if typed.startswith("/") else re.escape(typed)
        try:
            pattern = re.compile(source, re.IGNORECASE) if source else None
        except re.error as error:
            return replace(self, typed=typed, bad=str(error))
        return LogFilter(self.level, typed, pattern)

    def takes(self, line: LogLine) -> bool:
        """Return whether the line's level is high enough."""
        return LEVELS.index(line.level) >= LEVELS.index(self.level)

    def finds(self, line: LogLine) -> bool:
        """Return whether the words are in the line."""
        return self.pattern is None or self.pattern.search(f"{line.level} {line.text}") is not None

    def shown(self, lines: Iterable[LogLine], *, keep_all: bool = False) -> list[LogLine]:
        """The lines that pass; with ``keep_all`` the words only mark and hide nothing."""
        return [line for line in lines if self.takes(line) and (keep_all or self.finds(line))]

    def nothing(self) -> str:
        """A sentence for a log of which no line passes: what is missing, and the key that shows every line."""
        if self.pattern is not None:
            return f"No line matches {self.typed}. Esc shows all lines."
        level = {"error": "No errors", "warning": "No warnings or errors"}.get(self.level)
        return f"{level} in this log. i shows all lines." if level else "No line to show yet."

    def words(self) -> str:
        """The filter in words, for a title."""
        level = (
            "only errors"
            if self.level == "error"
            else f"{self.level} and above"
            if self.level != "debug"
            else "everything"
        )
        return level
