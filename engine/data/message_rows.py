"""Rows that are one message each of a tree (OpenAssistant's flat files), put together into trees.

Where the messages of a tree stand together, memory holds one tree, whatever the order within it. The messages of
shuffled rows are all kept, up to a limit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from engine.data.spoken import Record
from engine.data.tally import Tally
from engine.data.turns import is_turn

NO_PARENT = "message whose question is not there"
TOO_MANY = "message of a tree among so many in shuffled order (sort the rows by message_tree_id)"
_LOOKED_AT = 1_000  # messages by which the order is judged
_MOST_CHARACTERS = 64 * 2**20  # that are kept of a file in shuffled order
_CHARACTERS_BESIDE = 500  # a message takes about so many beside its text
_KEPT = ("message_id", "parent_id", "message_tree_id", "role", "text", "content", "rank", "deleted")

Message = dict[str, Any]


def are_message_rows(records: Sequence[Record]) -> bool:
    """Return whether each row is a message that names the one which it answers."""
    return bool(records) and all(
        is_turn(record) and "message_id" in record and "parent_id" in record for record in records
    )


def trees_of(records: Iterable[Any], tally: Tally) -> Iterator[Message]:
    """Rows of trees, ``{"prompt": {…, "replies": […]}}``, from rows of messages.

    Args:
        records: the messages.
        tally: counts messages that belong to no tree.
    """
    rows = _messages(records, tally)
    first = list(itertools.islice(rows, _LOOKED_AT))
    rows = itertools.chain(first, rows)
    if _stand_together(first):
        for _, group in itertools.groupby(rows, _tree_by_tree()):
            yield from _joined(list(group), tally)
        return
    kept: list[Message] = []
    characters = 0
    for row in rows:
        characters += _CHARACTERS_BESIDE + sum(len(value) for value in row.values() if isinstance(value, str))
        if characters > _MOST_CHARACTERS:
            tally.skip(TOO_MANY, len(kept) + 1 + sum(1 for _ in rows))
            return
        kept.append({name: row[name] for name in _KEPT if name in row})
    yield from _joined(kept, tally)


def _messages(records: Iterable[Any], tally: Tally) -> Iterator[Message]:
    for record in records:
        if isinstance(record, dict) and is_turn(record):
            yield record
        else:
            tally.skip("record that is no message of a tree")


def _tree_by_tree() -> Callable[[Mapping[str, Any]], object]:
    """A function that returns which tree a message belongs to: by its name, or by the last root before it."""
    roots = 0

    def tree(row: Mapping[str, Any]) -> object:
        nonlocal roots
        named = row.get("message_tree_id")
        if isinstance(named, str) and named:
            return named
        roots += _parent(row) is None
        return roots

    return tree


def _stand_together(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the messages of each tree follow one another, and without names of trees the questions first."""
    runs = [name for name, _ in itertools.groupby(rows, _tree_by_tree())]
    if all(isinstance(name, str) for name in runs):
        return len(set(runs)) == len(runs)
    ids = {str(row.get("message_id")) for row in rows}
    before: set[str] = set()
    for row in rows:
        parent = _parent(row)
        if parent in ids and parent not in before:
            return False
        before.add(str(row.get("message_id")))
    return True


def _joined(rows: Sequence[Message], tally: Tally) -> Iterator[Message]:
    """The trees of these messages; messages that hang from no root are counted."""
    messages = {str(row.get("message_id")): {**row, "replies": []} for row in rows}
    if len(messages) < len(rows):
        tally.pass_over("message of a tree that stands there twice", len(rows) - len(messages))
    roots = []
    for message in messages.values():
        parent = _parent(message)
        if parent is None:
            roots.append(message)
        elif parent in messages:
            messages[parent]["replies"].append(message)
    found, waiting = 0, list(roots)
    while waiting:
        found += 1
        waiting += waiting.pop()["replies"]
    if found < len(messages):
        tally.skip(NO_PARENT, len(messages) - found)
    for root in roots:
        yield {"prompt": root}


def _parent(row: Mapping[str, Any]) -> str | None:
    parent = row.get("parent_id")
    return parent if isinstance(parent, str) and parent else None
