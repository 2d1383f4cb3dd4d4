"""Rows of a .csv or .tsv file as dictionaries, in bounded memory.

A row with broken quotes is skipped, and reading continues at the line after its first one. The first row names the
columns. The first row, or a line ``sep=;`` before it, determines the separator: comma, semicolon, tab or bar. Between
tabs a quote may be a sign like any other: a line that has as many fields as there are columns is a row then.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from engine.data.byte_stream import ByteStream
from engine.data.form import ANSWERS, CHAT_FIELDS, QUESTIONS, TEXT_FIELDS
from engine.data.lines import whole_lines
from engine.data.spoken import quoted
from engine.data.tally import MAX_RECORD_BYTES, Tally

_NAMES_OF_TEXT = frozenset({*TEXT_FIELDS, *CHAT_FIELDS, *QUESTIONS, *ANSWERS})
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE | re.DOTALL)  # as Excel writes and reads it
_NONE = "\x1f"  # a control character that no text has
_COMMENT, _MOST_COMMENTS = "#", 50
_QUOTED = re.compile(r'"[^"]*"')
# Looking for the end of a quote that is never closed reads on to the limit. More than a few of these in a file would
# read it over and over.
_MOST_LOST_QUOTES = 20


def read_csv(path: Path, tally: Tally) -> Iterator[dict[str, str]]:
    """Yield the rows below the first one."""
    yield from _read(path, tally, None)


def read_tsv(path: Path, tally: Tally) -> Iterator[dict[str, str]]:
    """Yield the rows below the first one of a file whose columns are separated by tabs."""
    yield from _read(path, tally, "\t")


def _read(path: Path, tally: Tally, stated: str | None) -> Iterator[dict[str, str]]:
    # The csv module has one limit for the whole process, 128 KiB unless it is raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
    begun_at = tally.bytes_read
    with ByteStream(path, tally) as stream:
        lines = _Lines(whole_lines(stream, tally, MAX_RECORD_BYTES), tally)
        header: list[str] = []
        spaced = False  # whether a space follows each separator
        lost_quotes = 0
        while (first := lines.begin_row()) is not None:
            if not header:
                named = _SEPARATOR_LINE.fullmatch(first)
                if named:
                    stated = named[1]
                    lines.drop_first()
                    continue
                if first.startswith(_COMMENT) and not _names_columns(first) and _names_columns(lines.below(_COMMENT)):
                    tally.note("Comment above the names of the columns (not read)", tally.file)
                    lines.drop_first()
                    continue
                delimiter = _stated_or_seen(stated, first, tally)
            plain = _plain_cells(first, delimiter, len(header))
            try:
                row = next(csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced), [])
                if plain and lines.are_rows(len(header)):
                    row = plain
                    lines.back_to_second()
            except csv.Error:
                if plain:
                    lines.back_to_second()
                    yield dict(zip(header, plain, strict=True))
                    continue
                tally.skip("CSV row with broken quotes")
                lost_quotes += lines.ran_out
                if lost_quotes > _MOST_LOST_QUOTES:
                    left_bytes = path.stat().st_size - (tally.bytes_read - begun_at)
                    tally.skip_file("rest of a CSV file whose quotes are broken", max(0, left_bytes))
                    return
                lines.back_to_second()
                continue
            if not any(row):
                continue
            if not header:
                header = _names(row, tally)
                spaced = len(row) > 1 and all(name.startswith(" ") for name in row[1:])
            elif any(row[len(header) :]):
                tally.skip("CSV row with more fields than there are columns")
            else:
                yield dict(zip(header, row, strict=False))


def _names(row: list[str], tally: Tally) -> list[str]:
    """Names of columns. A name that stands again gets a number, so that the first column keeps it."""
    names: list[str] = []
    taken: set[str] = set()
    count: Counter[str] = Counter()
    for name in (cell.strip() for cell in row):
        unique = name
        while name and unique in taken:
            count[name] += 1
            unique = f"{name} ({count[name] + 1})"
        if unique != name:
            tally.note(f"Columns of the name {quoted(name)}, of which the first is read", tally.file)
        names.append(unique)
        taken.add(unique)
    return names


def _names_columns(line: str) -> bool:
    """Return whether a line names several columns, one of them as texts or conversations are called."""
    cells = [cell.strip().strip('"').lower() for cell in line.split(_delimiter_of(line))]
    return len(cells) > 1 and not _NAMES_OF_TEXT.isdisjoint(cells)


def _plain_cells(line: str, delimiter: str, columns: int) -> list[str]:
    """The cells of a line between tabs if there are as many as columns, with their quotes; else none."""
    cells = line.rstrip("\r\n").split(delimiter)
    return cells if delimiter == "\t" and '"' in line and len(cells) == columns > 1 else []


def _stated_or_seen(stated: str | None, header: str, tally: Tally) -> str:
    """The separator that a file states, by its suffix too, unless its first row is separated by another sign."""
    seen = _delimiter_of(header)
    if stated is None or stated in header or seen == _NONE:
        return stated or seen
    tally.note(f"Read with its columns separated by {seen!r}", tally.file)
    return seen


def _delimiter_of(header: str) -> str:
    """The sign that stands most often in the first row, outside of quotes; with none of them a row is one field."""
    without_quotes = _QUOTED.sub("", header)
    delimiter = max(_DELIMITERS, key=without_quotes.count)
    return delimiter if delimiter in without_quotes else _NONE


class _Lines:
    """Lines for csv.reader that can be given back, and that end where one row could not be longer."""

    def __init__(self, lines: Iterator[bytes | None], tally: Tally) -> None:
        self._lines = lines
        self._tally = tally
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self._size = 0
        self.ran_out = False

    def begin_row(self) -> str | None:
        """The line with which the next row begins, left where it is; None at the end of the file."""
        self._taken, self._size, self.ran_out = [], 0, False
        while not self._again:
            try:
                line = next(self._lines)
            except StopIteration:
                return None
            self._read(line)
        return self._again[0]

    def below(self, mark: str) -> str:
        """The first of the next lines that does not begin with a mark, all left where they are; empty without one."""
        for number in range(1, _MOST_COMMENTS + 1):
            while len(self._again) <= number:
                try:
                    self._read(next(self._lines))
                except StopIteration:
                    return ""
            if not self._again[number].startswith(mark):
                return self._again[number]
        return ""

    def drop_first(self) -> None:
        """Take the line with which the next row would begin, which is none of a row."""
        self._again.popleft()

    def back_to_second(self) -> None:
        """Give back all lines of this row but the first."""
        self._again.extendleft(reversed(self._taken[1:]))

    def are_rows(self, columns: int) -> bool:
        """Return whether this row has several lines, and each of them has as many fields between tabs as columns."""
        return len(self._taken) > 1 and all(line.count("\t") + 1 == columns for line in self._taken)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._size > MAX_RECORD_BYTES:
            self.ran_out = True
            raise StopIteration
        while not self._again:
            try:
                line = next(self._lines)
            except StopIteration:
                self.ran_out = True
                raise
            self._read(line)
            if line is None:  # a row with a hole in it is no row
                raise StopIteration
        line_text = self._again.popleft()
        self._taken.append(line_text)
        self._size += len(line_text)
        return line_text

    def _read(self, line: bytes | None) -> None:
        if line is None:
            self._tally.skip(f"line over {MAX_RECORD_BYTES // 2**20} MiB")
        else:
            self._again.append(line.decode("utf-8", "surrogateescape").replace("\r\n", "\n"))
