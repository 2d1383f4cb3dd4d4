"""Which field of a record holds the text, and the document that it makes.

Found by looking at the first records of a file: ``messages`` (turns with ``role`` and ``content``) is chat, otherwise a
field of a usual name, otherwise the only field that holds text. Guessing further would train on the wrong words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHAT_FIELDS = ("messages", "conversation", "conversations")
TEXT_FIELDS = ("text", "content", "body", "document", "article", "passage", "story", "markdown", "sentence")

Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class TextField:
    """Where the text is.

    Attributes:
        name: the field.
        is_chat: whether it holds messages.
    """

    name: str
    is_chat: bool


def choose_field(records: Sequence[Mapping[str, Any]], wanted: str | None) -> TextField | None:
    """The field to read, judged by the first records of a file; None when it cannot be told.

    Args:
        records: the first records.
        wanted: the field that the person named.
    """
    if wanted is not None:
        values = [record[wanted] for record in records if wanted in record]
        return TextField(wanted, any(_turns(value) is not None for value in values)) if values else None
    for name in CHAT_FIELDS:
        if _often(records, lambda record, name=name: _turns(record.get(name)) is not None):
            return TextField(name, True)
    for name in TEXT_FIELDS:
        if _often(records, lambda record, name=name: _is_text(record.get(name))):
            return TextField(name, False)
    texts = text_fields(records)
    # Of one field alone there is no doubt, unless it holds single words: a version, a name, a path.
    if len(texts) == 1 and _often(records, lambda record: len(str(record.get(texts[0], "")).split()) > 1):
        return TextField(texts[0], False)
    return None


def text_fields(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields that hold text, in the order in which they come."""
    return list(dict.fromkeys(name for record in records for name, value in record.items() if _is_text(value)))


def all_fields(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every field, in the order in which they come."""
    return list(dict.fromkeys(name for record in records for name in record))


def messages_of(value: object) -> Messages | None:
    """The turns of a conversation; None when the value is none, or a turn holds something else than text."""
    turns = _turns(value)
    if turns is None:
        return None
    found = []
    for turn in turns:
        content = _content(turn.get("content"))
        if content is None or not isinstance(turn["role"], str):
            return None
        found.append({"role": turn["role"], "content": content})
    return tuple(found)


def told(messages: Messages) -> str:
    """A conversation as one text: what a person reads in a preview, and what is hashed to tell it from others."""
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _turns(value: object) -> list[dict[str, Any]] | None:
    if not isinstance(value, list) or not value:
        return None
    return value if all(isinstance(turn, dict) and "role" in turn for turn in value) else None


def _content(value: object) -> str | None:
    """Content is a text, or a list of parts that are all text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        parts = [part.get("text") for part in value]
        return "".join(parts) if all(isinstance(part, str) for part in parts) else None
    return None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not value.isspace() and value != ""


def _often(records: Sequence[Mapping[str, Any]], holds: Any) -> bool:
    """Whether it is so for at least half of the records, and for one."""
    count = sum(map(holds, records))
    return count > 0 and 2 * count >= len(records)
