"""Readers of each file type: from a path to records, in bounded memory.

A record is a text, or the fields of an object or of a row. Damaged data is skipped and counted, never repaired:
bytes that are not UTF-8 become lone surrogates here, by which the text is recognised and left out later. fields.py
selects the field with the text; byte_stream.py handles compression and encoding.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.data.arrow import read_arrow
from engine.data.byte_stream import ByteStream
from engine.data.csv_rows import read_csv, read_tsv
from engine.data.encoding import is_utf8
from engine.data.json_table import AS_TABLE, rows_of_table
from engine.data.json_values import RawValue, json_values, too_long
from engine.data.json_wrapper import list_of_rows, look_inside, rows_at
from engine.data.lines import cut_lines, whole_lines
from engine.data.parquet import read_parquet
from engine.data.tally import MAX_RECORD_BYTES, Tally
from engine.data.turns import are_turns, json_value

Record = str | dict[str, Any]

MAX_DOCUMENT_CHARACTERS = 2**18
"""A text file longer than this comes as several documents, cut at paragraph borders."""

_MAX_TEXT_LINE_BYTES = 2**20
_HEAD_BYTES = 64 * 2**10
_BLOCK_BYTES = 256 * 2**10
_MOST_BAD_LINES = 0.1  # of a text's lines may have NUL bytes in them; with more it is no text
_MOST_NOT_JSON = 0.1  # of a text's lines; with fewer its lines are JSON objects

_PYTHON = re.compile(r"\s*\{\s*'")
_COMMA_AND_BRACKET = re.compile(r",\s*[}\]]")

_NO_UTF8 = "line that is not UTF-8"
_AMONG_OBJECTS = "text that stands alone among the objects of a list"
_NOT_TEXT = "JSON value that is neither text nor an object"


def read_text(path: Path, tally: Tally) -> Iterator[Record]:
    """A .txt or .md file: one text, or several where it is longer than MAX_DOCUMENT_CHARACTERS."""
    with ByteStream(path, tally) as stream:
        head = stream.peek(_HEAD_BYTES)
        if _is_binary(head):
            tally.skip_file("binary file", path.stat().st_size)
            return
        lines: list[str] = []
        size = 0
        for raw in cut_lines(stream, tally, _MAX_TEXT_LINE_BYTES):
            line = _decoded_line(raw, tally)
            if (lines and size + len(line) > MAX_DOCUMENT_CHARACTERS) or (
                size > MAX_DOCUMENT_CHARACTERS // 2 and lines[-1].isspace() and not line.isspace()
            ):
                yield "".join(lines)
                lines, size = [], 0
            if line:
                lines.append(line)
                size += len(line)
        if lines or not stream.is_unreadable:
            yield "".join(lines)


def read_json_lines(path: Path, tally: Tally) -> Iterator[Record]:
    """A .jsonl file: one value a line."""
    with ByteStream(path, tally) as stream:
        for line in whole_lines(stream, tally, MAX_RECORD_BYTES):
            if line is None:
                tally.skip(f"line over {MAX_RECORD_BYTES // 2**20} MiB")
            elif line.strip():
                yield from _parsed(line, tally)


def read_json(path: Path, tally: Tally, split: str = "train") -> Iterator[Record]:
    """A .json file: a list, an object, an object that holds a list of rows, or several values one behind the other.

    Args:
        path: the file.
        tally: counts what is passed over.
        split: the list that is read of an object with a list for each split.
    """
    with ByteStream(path, tally) as stream:
        values = json_values(_blocks(stream), tally, MAX_RECORD_BYTES)
        first = list(itertools.islice(values, 2))
        # An object with others behind it is a record: JSON lines under the name of .json.
        alone = first[0] if len(first) == 1 and not first[0].in_list else None
        for value in [] if alone else itertools.chain(first, values):
            if value.data is None:
                tally.skip(too_long(MAX_RECORD_BYTES))
            elif first[0].in_list and (first[0].data or b"")[:1] == b"{" and value.data[:1] == b'"':
                tally.skip(_AMONG_OBJECTS)  # in a comment, for example
            else:
                yield from _parsed(value.data, tally)
    if alone is not None:
        yield from _of_one_object(path, alone, split, tally)


def _of_one_object(path: Path, value: RawValue, split: str, tally: Tally) -> Iterator[Record]:
    """The rows of the list in an object, or the object as a record; read again where it is too long to keep."""

    def content() -> Iterator[bytes]:
        if value.data is not None:
            yield value.data
            return
        with ByteStream(path, Tally()) as stream:
            left = value.end
            for block in _blocks(stream):
                yield block[max(0, value.start - (value.end - left)) : left]
                left -= len(block)
                if left <= 0:
                    return

    inside = look_inside(content(), MAX_RECORD_BYTES)
    wanted = list_of_rows(inside, split)
    if wanted is None:
        if value.data is None:
            tally.skip(f"{too_long(MAX_RECORD_BYTES)} with no list of rows in it (write one object a line, as .jsonl)")
        else:
            yield from _record_or_table(value.data, tally)
        return
    for other in inside.lists:
        if other.path != wanted and other.rows and not other.others:
            tally.pass_over(f"row of the list {'.'.join(other.path)!r} beside {'.'.join(wanted)!r}", other.rows)
    for row in rows_at(content(), wanted, MAX_RECORD_BYTES, lambda: tally.skip(too_long(MAX_RECORD_BYTES))):
        yield from _parsed(row, tally)


def _record_or_table(data: bytes, tally: Tally) -> Iterator[Record]:
    for record in _parsed(data, tally):
        rows = rows_of_table(record) if isinstance(record, dict) else None
        if rows is not None:
            tally.note(AS_TABLE, tally.here)
        yield from [record] if rows is None else rows


READERS: dict[str, Callable[[Path, Tally], Iterator[Record]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
"""Readers by file suffix."""


def content_suffix(head: bytes, suffix: str, *, is_all: bool) -> str:
    """By which suffix a file is read: its own, unless its content is JSON of another kind.

    Args:
        head: the first bytes, as UTF-8.
        suffix: the file's own; empty where it has none that says anything.
        is_all: whether the head is the whole file.
    """
    if suffix in (".txt", ".md", "", ".jsonl", ".ndjson"):
        lines = [line for line in head.split(b"\n") if line.strip()]
        whole = lines if is_all or len(lines) < 2 else lines[:-1]
        if lines and lines[0].lstrip()[:1] == b"{":  # the rows of a list, whose brackets are gone
            whole = [line.strip().removesuffix(b",") for line in whole]
        objects = sum(_is_object(line) for line in whole)
        if whole and objects >= (1 - _MOST_NOT_JSON) * len(whole) and _is_object(whole[0]):
            return suffix if suffix in (".jsonl", ".ndjson") else ".jsonl"
        # Of a list over several lines the last row may stand alone on its own.
        few = 2 * objects < len(whole) and head.lstrip()[:1] == b"[" and not _is_object(whole[0])
        if (few or not objects) and head.lstrip()[:1] in (b"[", b"{") and _first_is_object(head):
            return ".json"
    return suffix or ".txt"


def _is_object(line: bytes) -> bool:
    """Return whether this is an object in JSON, or the list of a conversation's turns."""
    if line.strip()[:1] not in (b"{", b"["):
        return False
    try:
        value = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or are_turns(value)


def _first_is_object(head: bytes) -> bool:
    """Return whether the first value of a file, or of the list that it is, is an object over some lines; no turn."""
    value = next(json_values([head], Tally(), len(head)), None)
    if value is None or value.data is None or not _is_object(value.data):
        return False
    return not (value.in_list and are_turns([json.loads(value.data.decode("utf-8", "replace"))]))


def _blocks(stream: ByteStream) -> Iterator[bytes]:
    while block := stream.read(_BLOCK_BYTES):
        yield block


def _parsed(data: bytes, tally: Tally) -> Iterator[Record]:
    twice: list[str] = []
    # The rows of a list, one a line; before each a record separator (RFC 7464).
    data = data.lstrip(b"\x1e").rstrip().removesuffix(b",")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            twice.append("")
        return made

    text = data.decode("utf-8", "surrogateescape")
    try:
        try:
            value = json.loads(text, object_pairs_hook=pairs)
        except json.JSONDecodeError:
            raise
        except ValueError:  # Python's limit on the digits of a whole number
            twice.clear()
            value = json.loads(text, object_pairs_hook=pairs, parse_int=float)
    except RecursionError:
        tally.skip("JSON that is nested too deeply")
    except ValueError as error:
        tally.skip(_what_is_broken(text, error))
    else:
        if twice:
            tally.note("Keys that stand twice in a JSON object, of which the last one counts", tally.here)
        inner = json_value(value)
        if isinstance(inner, dict) or are_turns(inner):
            tally.note("JSON that is written as a text in JSON, read as what it holds", tally.here)
            value = inner
        if isinstance(value, str | dict):
            yield value
        elif are_turns(value):
            yield {"messages": value}  # a conversation that is the whole line
        else:
            tally.skip(_NOT_TEXT)


def _what_is_broken(text: str, error: ValueError) -> str:
    """The reason for leaving out a value that is no JSON."""
    if _PYTHON.match(text):
        return "record in Python's notation, not JSON (json.dumps() writes JSON)"
    if isinstance(error, json.JSONDecodeError):
        before, behind = text[: error.pos].rstrip(), text[error.pos :].lstrip()
        # Python 3.13 points at the comma, releases before it at the bracket.
        if _COMMA_AND_BRACKET.match(behind) or (before.endswith(",") and behind[:1] in ("}", "]")):
            return "JSON with a comma behind the last element of a list or an object (take it out)"
    return "broken JSON"


def _is_binary(head: bytes) -> bool:
    """Return whether a file is no text, judged by its beginning."""
    lines = [line for line in re.split(rb"[\r\n]+", head) if line]
    return sum(b"\0" in line for line in lines) > _MOST_BAD_LINES * len(lines)


def _decoded_line(raw: bytes, tally: Tally) -> str:
    """A line of text, or nothing where it cannot be read: the rest of the file is still good."""
    if b"\0" in raw:
        tally.pass_over("line with NUL bytes")
        return ""
    if not is_utf8(raw):
        tally.pass_over(_NO_UTF8)
        return ""
    return raw.decode().replace("\r\n", "\n").replace("\r", "\n")
