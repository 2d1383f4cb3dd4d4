"""One reader for each kind of file: from a path to records, in bounded memory.

A record is a text, or the fields of an object or of a row. What is damaged is passed over and counted, never mended:
bytes that are not UTF-8 become lone surrogates here, by which the text is recognised and left out later. Which field
holds the text is the business of fields.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.data.csv_rows import read_csv
from engine.data.json_values import json_values
from engine.data.lines import cut_lines, whole_lines
from engine.data.parquet import read_parquet
from engine.data.tally import MAX_RECORD_BYTES, Tally
from engine.data.turns import are_turns

Record = str | dict[str, Any]

MAX_DOCUMENT_CHARACTERS = 2**18
"""A text file longer than this comes as several documents, cut at paragraph borders."""

_MAX_TEXT_LINE_BYTES = 2**20
_HEAD_BYTES = 64 * 2**10
_BLOCK_BYTES = 256 * 2**10
_MOST_BAD_LINES = 0.1  # a text with more lines than this that are not UTF-8 is in another encoding

_NO_UTF8 = "line that is not UTF-8"
_NOT_TEXT = "JSON value that is neither text nor an object"


def read_text(path: Path, tally: Tally) -> Iterator[Record]:
    """A .txt or .md file: one text, or several where it is longer than MAX_DOCUMENT_CHARACTERS."""
    with path.open("rb") as file:
        wrong = _no_text(file.read(_HEAD_BYTES))
        if wrong:
            tally.skip(wrong)
            tally.bytes_read += path.stat().st_size
            return
        file.seek(0)
        lines: list[str] = []
        size = 0
        for raw in cut_lines(file, tally, _MAX_TEXT_LINE_BYTES):
            line = _decoded_line(raw, tally)
            if size + len(line) > MAX_DOCUMENT_CHARACTERS or (
                size > MAX_DOCUMENT_CHARACTERS // 2 and lines[-1].isspace() and not line.isspace()
            ):
                yield "".join(lines)
                lines, size = [], 0
            if line:
                lines.append(line)
                size += len(line)
        yield "".join(lines)


def read_json_lines(path: Path, tally: Tally) -> Iterator[Record]:
    """A .jsonl file: one value a line."""
    with path.open("rb") as file:
        for line in whole_lines(file, tally, MAX_RECORD_BYTES):
            if line is None:
                tally.skip(f"line over {MAX_RECORD_BYTES // 2**20} MiB")
            elif line.strip():
                yield from _parsed(line, tally)


def read_json(path: Path, tally: Tally) -> Iterator[Record]:
    """A .json file: a list, an object, an object that holds one list, or several values one behind the other."""
    with path.open("rb") as file:
        for value in json_values(_blocks(file, tally), tally, MAX_RECORD_BYTES):
            for record in _parsed(value.data, tally):
                rows = None if value.in_list else _only_list(record)
                yield from rows or [record]


READERS: dict[str, Callable[[Path, Tally], Iterator[Record]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
"""What can be read, by the file's suffix."""


def _blocks(file: Any, tally: Tally) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        tally.bytes_read += len(block)
        yield block


def _parsed(data: bytes, tally: Tally) -> Iterator[Record]:
    try:
        value = json.loads(data.decode("utf-8", "surrogateescape"))
    except RecursionError:
        tally.skip("JSON that is nested too deeply")
    except ValueError:
        tally.skip("broken JSON")
    else:
        if isinstance(value, str | dict):
            yield value
        elif are_turns(value):
            yield {"messages": value}  # a conversation that is the whole line
        else:
            tally.skip(_NOT_TEXT)


def _only_list(record: Record) -> list[Record] | None:
    """The rows of ``{"version": 1, "data": [{…}, …]}``; None for an object that is a row itself."""
    if isinstance(record, str):
        return None
    lists = [value for value in record.values() if isinstance(value, list) and value]
    texts = any(isinstance(value, str) and len(value) > 200 for value in record.values())
    if texts or len(lists) != 1 or not all(isinstance(row, dict) for row in lists[0]):
        return None
    rows: list[Record] = lists[0]
    return None if are_turns(rows) else rows  # the turns of one conversation are one record


def _no_text(head: bytes) -> str | None:
    """Why a file is no text that can be read, judged by its beginning."""
    if b"\0" in head:
        return "binary file"
    lines = re.split(rb"[\r\n]+", head)  # the last one may end within a character: see _is_utf8
    lines = [line for line in lines if line]
    bad = sum(not _is_utf8(line) for line in lines)
    return "file that is not UTF-8" if bad > _MOST_BAD_LINES * len(lines) else None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def _decoded_line(raw: bytes, tally: Tally) -> str:
    """A line of text, or nothing where it cannot be read: the rest of the file is still good."""
    if b"\0" in raw:
        tally.skip("line with NUL bytes")
        return ""
    try:
        return raw.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        tally.skip(_NO_UTF8)
        return ""
