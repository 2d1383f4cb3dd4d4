"""Rows of a .csv file as dictionaries, in bounded memory.

A row with broken quotes is passed over, and reading goes on at the line behind the one where it began. The first row
names the columns. Commas, semicolons and tabs are told apart by the first row.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from engine.data.lines import whole_lines
from engine.data.tally import MAX_RECORD_BYTES, Tally

_DELIMITERS = ",;\t"
# Looking for the end of a quote that is never closed reads on to the limit. More than a few of these in a file would
# read it over and over.
_MOST_LOST_QUOTES = 20


def read_csv(path: Path, tally: Tally) -> Iterator[dict[str, str]]:
    """Yield the rows below the first one."""
    # The csv module has one limit for the whole process, 128 KiB unless it is raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
    with path.open("rb") as file:
        lines = _Lines(whole_lines(file, tally, MAX_RECORD_BYTES), tally)
        header: list[str] = []
        lost_quotes = 0
        while (first := lines.begin_row()) is not None:
            if not header:
                delimiter = max(_DELIMITERS, key=first.count)
            try:
                row = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
            except csv.Error:
                tally.skip("CSV row with broken quotes")
                lost_quotes += lines.ran_out
                if lost_quotes > _MOST_LOST_QUOTES:
                    tally.skip("rest of a CSV file whose quotes are broken")
                    return
                lines.back_to_second()
                continue
            if not any(row):
                continue
            if not header:
                header = row
            elif len(row) > len(header):
                tally.skip("CSV row with more fields than there are columns")
            else:
                yield dict(zip(header, row, strict=False))


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

    def back_to_second(self) -> None:
        """Give back all lines of this row but the first."""
        self._again.extendleft(reversed(self._taken[1:]))

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
