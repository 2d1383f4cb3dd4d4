"""Rows that are one message each of a tree (OpenAssistant's flat files), put together into trees.

The messages of one tree stand one behind the other in these files, and a message stands behind the one that it answers,
so memory holds one tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from engine.data.spoken import Record
from engine.data.tally import Tally
from engine.data.turns import is_turn

NO_PARENT = "message whose question does not stand before it"


def are_message_rows(records: Sequence[Record]) -> bool:
    """Return whether each row is a message that names the one which it answers."""
    return bool(records) and all(
        is_turn(record) and "message_id" in record and "parent_id" in record for record in records
    )


def trees_of(records: Iterable[Any], tally: Tally) -> Iterator[dict[str, Any]]:
    """Rows of trees, ``{"prompt": {…, "replies": […]}}``, from rows of messages.

    Args:
        records: the messages.
        tally: counts messages that belong to no tree.
    """
    tree: dict[str, Any] | None = None
    messages: dict[str, dict[str, Any]] = {}
    for record in records:
        if not isinstance(record, dict) or not is_turn(record):
            tally.skip("record that is no message of a tree")
            continue
        message = {**record, "replies": []}
        parent = record.get("parent_id")
        if not isinstance(parent, str) or not parent:
            if tree is not None:
                yield {"prompt": tree}
            tree, messages = message, {}
        elif parent in messages:
            messages[parent]["replies"].append(message)
        else:
            tally.skip(NO_PARENT)
            continue
        messages[str(record.get("message_id"))] = message
    if tree is not None:
        yield {"prompt": tree}
