"""Tables that are one JSON object: columns beside each other, as pandas and the datasets library write them.

``{"text": ["…", "…"]}``, ``{"text": {"0": "…", "1": "…"}}`` (the default of pandas' ``to_json``), its ``index`` and
``split`` forms. Everything else is one record. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine.data.form import ANSWERS, QUESTIONS, TEXT_FIELDS
from engine.data.turns import are_turns, turns_of_columns

AS_TABLE = "JSON object of columns, read as the rows of a table"
_NAMES = frozenset({*TEXT_FIELDS, *QUESTIONS, *ANSWERS})


def rows_of_table(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of a table that is one object; None for an object that is a record."""
    if value.keys() >= {"columns", "data"} and value.keys() <= {"columns", "data", "index"}:
        return _split_form(value["columns"], value["data"])
    columns = list(value.values())
    if columns and all(isinstance(column, dict) and column for column in columns):
        if _are_numbers(value):
            return columns  # by the number of the row
        if all(_are_numbers(column) and column.keys() == columns[0].keys() for column in columns):
            return [{name: column[number] for name, column in value.items()} for number in columns[0]]
        return None
    if not columns or not all(isinstance(column, list) and len(column) > 1 for column in columns):
        return None
    is_record = any(map(are_turns, columns)) or turns_of_columns(value) is not None
    if is_record or len({len(column) for column in columns}) > 1 or not any(name.lower() in _NAMES for name in value):
        return None
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _split_form(names: object, rows: object) -> list[dict[str, Any]] | None:
    if not isinstance(names, list) or not isinstance(rows, list) or not all(isinstance(name, str) for name in names):
        return None
    if not rows or not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        return None
    return [dict(zip(names, row, strict=True)) for row in rows]


def _are_numbers(names: Iterable[str]) -> bool:
    return all(name.isdecimal() for name in names)
