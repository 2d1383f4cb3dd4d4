"""Iterator over the values of a JSON file, in bounded memory: a list of any length is read element by element.

It scans brackets and quotes only and yields each value as bytes, which ``json`` parses. Several consecutive values
(JSON lines in a .json file) are accepted too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from engine.data.tally import Tally

_OUTSIDE = re.compile(rb'["{}\[\]]')
_INSIDE = re.compile(rb'["\\]')
_BARE = re.compile(rb"[^\s,\xef\xbb\xbf]+")  # the byte-order marks of joined files are no values


@dataclass(frozen=True)
class RawValue:
    """One value, not yet parsed.

    Attributes:
        data: its bytes; None for an object that is too long to keep.
        in_list: whether it is an element of the file's outer list.
        start, end: where it stands in the stream.
    """

    data: bytes | None
    in_list: bool
    start: int
    end: int


def json_values(chunks: Iterable[bytes], tally: Tally, limit: int) -> Iterator[RawValue]:
    """Objects, lists and strings of a file, those in an outer list one by one.

    Args:
        chunks: the file's bytes, in parts of any size.
        tally: counts values longer than ``limit``, bare numbers and words, and a file that ends in mid-value. An outer
            value longer than that comes without its bytes: it may hold a list, see json_wrapper.py.
        limit: bytes of a value that are kept.
    """
    scanner = _Scanner(tally, limit)
    for chunk in chunks:
        yield from scanner.feed(chunk)
    scanner.finish()


def too_long(limit: int) -> str:
    """The reason for leaving out a value that is longer."""
    return f"JSON value over {limit // 2**20} MiB"


class _Scanner:
    """Where we are: how deep, whether in a string, and the bytes of the value that has begun."""

    def __init__(self, tally: Tally, limit: int) -> None:
        self._tally = tally
        self._limit = limit
        self._depth = 0
        self._base = 0  # depth of the values: 1 within the outer list
        self._in_string = False
        self._escaped = False
        self._value: bytearray | None = None
        self._too_long = False
        self._before = 0  # bytes in the chunks before this one
        self._start = 0

    def feed(self, chunk: bytes) -> Iterator[RawValue]:
        position = kept = 0  # kept: bytes of the chunk before this are in the value already, or not wanted
        while position < len(chunk):
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            found = (_INSIDE if self._in_string else _OUTSIDE).search(chunk, position)
            if not self._begun:
                self._count_bare(chunk[position : found.start() if found else len(chunk)])
            if not found:
                break
            position = found.end()
            if self._step(found[0]) and self._value is None:
                self._value, kept = bytearray(), found.start()
                self._start = self._before + kept
            if self._begun and self._is_whole:
                self._keep(chunk[kept:position])
                kept = position
                yield from self._end_of_value(self._before + position)
        if self._begun:
            self._keep(chunk[kept:])
        self._before += len(chunk)

    def finish(self) -> None:
        if self._begun or self._depth:
            self._tally.skip("JSON file that ends in the middle")

    @property
    def _begun(self) -> bool:
        return self._value is not None

    @property
    def _is_whole(self) -> bool:
        return self._depth == self._base and not self._in_string

    def _step(self, mark: bytes) -> bool:
        """Go past one bracket, quote or backslash; whether what is there belongs to a value."""
        if self._in_string:
            self._in_string = mark != b'"'
            self._escaped = mark == b"\\"
            return True
        if mark == b'"':
            self._in_string = True
            return True
        if mark in b"[{":
            self._depth += 1
            if mark == b"[" and self._depth == 1:
                self._base = 1
                return False
            return True
        if self._depth == self._base and not self._begun:  # nothing is open that this could close, but the outer list
            if not (self._base and mark == b"]"):
                self._tally.skip("broken JSON")
            self._depth = self._base = 0
            return False
        self._depth -= 1
        return True

    def _keep(self, data: bytes) -> None:
        assert self._value is not None
        if self._too_long or len(self._value) + len(data) > self._limit:
            self._too_long = True
            self._value.clear()
        else:
            self._value += data

    def _end_of_value(self, end: int) -> Iterator[RawValue]:
        assert self._value is not None
        if not self._too_long:
            yield RawValue(bytes(self._value), self._base == 1, self._start, end)
        elif self._base == 1:
            self._tally.skip(too_long(self._limit))
        else:
            yield RawValue(None, False, self._start, end)
        self._value, self._too_long = None, False

    def _count_bare(self, between: bytes) -> None:
        bare = len(_BARE.findall(between))
        if bare:
            self._tally.skip("JSON value that is neither text nor an object", bare)
