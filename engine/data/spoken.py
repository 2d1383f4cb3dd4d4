"""Values of a record as a question or an answer: a text, or turns, plain or written as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.data.turns import are_turns, is_turn, json_value, turns_of_columns, turns_of_keys, turns_of_pairs

Record = Mapping[str, Any]


def is_text(value: object) -> bool:
    """Return whether a value is a text that is not empty."""
    return isinstance(value, str) and not value.isspace() and value != ""


def decoded(value: object) -> Any:
    """A value as it is meant: what stands as JSON in a text is read from it, turns in columns or in pairs are turns."""
    found = json_value(value)
    found = value if found is None else found
    if isinstance(found, Mapping):
        return turns_of_columns(found) or found
    return (turns_of_pairs(found) or turns_of_keys(found) or found) if isinstance(found, list) else found


def spoken(value: object) -> str | list[Any] | None:
    """A question or an answer: turns, also as JSON, or a text; an answer in JSON that is no turns is a text."""
    found = decoded(value)
    if is_turn(found):
        return [found]
    if isinstance(found, Mapping):
        found = found.get("messages")
    if are_turns(found):
        turns: list[Any] = found
        return turns
    return value if isinstance(value, str) and is_text(value) else None


def quoted(name: str) -> str:
    """The name of a field in a message."""
    return repr(name if len(name) <= 60 else name[:57] + "...")
