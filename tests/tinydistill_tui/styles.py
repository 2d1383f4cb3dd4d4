"""Textual's styles, parsed once for all apps of a test process.

Each app parses the same style sheets again, a fifth of a second of processor time. The resulting rules depend on
the sheet, its place and the theme's variables alone, and an app only reads them.
"""

from __future__ import annotations

import functools
from typing import Any

from textual.css.model import RuleSet
from textual.css.stylesheet import Stylesheet


@functools.cache
def parse_once() -> None:
    """Let apps share what was parsed; lasts as long as the process."""
    parsed: dict[tuple[Any, ...], list[RuleSet]] = {}
    parse = Stylesheet._parse_rules

    def parse_or_find(self: Stylesheet, *args: Any, **kwargs: Any) -> list[RuleSet]:
        key = (args, frozenset(kwargs.items()), frozenset(self._variables.items()))
        if key not in parsed:
            parsed[key] = parse(self, *args, **kwargs)
        return parsed[key]

    Stylesheet._parse_rules = parse_or_find  # type: ignore[method-assign]
