"""Rows inside of a wrapper object, ``{"version": 1, "data": [{…}, …], "meta": {…}}``, in bounded memory.

The first pass over the object's bytes finds its lists and their content, the second yields the rows of one list. The
same rule selects the list in small objects and in those of many gigabytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from engine.data.form import ANSWERS, QUESTIONS, TEXT_FIELDS
from engine.data.split_names import split_of_words
from engine.data.turns import are_turns, turns_of_keys

Keys = tuple[str, ...]

_USUAL_NAMES = ("data", "rows", "records", "examples", "items", "documents", "train")
_MOST_DEPTH = 8
_LONG_TEXT = 200  # bytes; an object with such a text in it is a record itself, unless its list has a usual name
_LONGEST_KEY = 1000
# An object with a text of its own under one of these names is a record, whatever list stands beside it.
_NAMES_OF_TEXT = frozenset({*TEXT_FIELDS, *QUESTIONS, *ANSWERS})
_MARKS = re.compile(rb'["{}\[\]:,]')
_STRING_END = re.compile(rb'["\\]')


@dataclass
class ListInside:
    """A list in an object.

    Attributes:
        path: keys that lead to it.
        rows: elements that are objects.
        others: elements that are none.
        is_turns: whether its first element is the turn of a conversation: the object is that conversation's record.
    """

    path: Keys
    rows: int = 0
    others: int = 0
    is_turns: bool = False


@dataclass
class Inside:
    """Content of an object.

    Attributes:
        lists: those that are not empty, in objects within it too.
        texts: the texts that are its own, by key: their bytes.
    """

    lists: list[ListInside]
    texts: dict[str, int]


def look_inside(chunks: Iterable[bytes], limit: int) -> Inside:
    """Find the lists in an object."""
    found: dict[Keys, ListInside] = {}
    walk = _Walk(limit)
    for path, element in walk.elements(chunks):
        here = found.setdefault(path, ListInside(path))
        if element.startswith(b"{") or not element:
            if not here.rows and element:
                here.is_turns = _is_turn(element)
            here.rows += 1
        else:
            here.others += 1
    return Inside(list(found.values()), walk.texts)


def list_of_rows(inside: Inside, split: str) -> Keys | None:
    """The list whose elements are the rows; None where the object is a record itself.

    Of several lists it is the one that is called as the split, else the only one, else one of a usual name.
    """
    if not _NAMES_OF_TEXT.isdisjoint(inside.texts) or any(each.is_turns for each in inside.lists):
        return None
    rows = [each for each in inside.lists if each.rows and not each.others]
    by_split = [each for each in rows if split in (each.path[-1], split_of_words(each.path[-1]))]
    if len(by_split) == 1:
        return by_split[0].path
    named = [each for name in _USUAL_NAMES for each in rows if each.path[-1].lower() == name]
    if named:
        return named[0].path
    has_long_text = any(size > _LONG_TEXT for size in inside.texts.values())
    return rows[0].path if len(rows) == 1 and not has_long_text else None


def rows_at(chunks: Iterable[bytes], wanted: Keys, limit: int, passed_over: Callable[[], None]) -> Iterator[bytes]:
    """The elements of one list; one that is longer than ``limit`` is skipped and reported."""
    for path, element in _Walk(limit).elements(chunks):
        if path == wanted:
            if element:
                yield element
            else:
                passed_over()


def _is_turn(element: bytes) -> bool:
    try:
        turn = json.loads(element.decode("utf-8", "replace"))
        return are_turns([turn]) or turns_of_keys([turn, {"assistant": ""}]) is not None
    except (ValueError, RecursionError):
        return False


class _Walk:
    """Goes through an object's bytes and gives the elements of each list that hangs under its keys.

    Attributes:
        texts: bytes of the texts that are the object's own, by key.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.texts: dict[str, int] = {}
        self._keys: list[str] = []  # of the objects that are open, the last one of each
        self._string = b""
        self._is_value = False  # whether what comes is the value of a key
        self._in_list = False
        self._depth = 0  # of brackets within the list
        self._element: bytearray | None = None
        self._is_long = False

    def elements(self, chunks: Iterable[bytes]) -> Iterator[tuple[Keys, bytes]]:
        """Path and bytes of each element; no bytes for one that is longer than the limit."""
        for kind, data in _tokens(chunks):
            if self._in_list:
                yield from self._inside_list(kind, data)
                continue
            if kind == "{":
                if len(self._keys) > _MOST_DEPTH:
                    return
                self._keys.append("")
            elif kind == "}":
                self._keys = self._keys[:-1]
            elif kind == "[":
                self._in_list, self._depth, self._element, self._is_long = True, 0, None, False
            elif kind in ("string", "part"):
                self._string = data
                if self._is_value and len(self._keys) == 1:
                    self.texts[self._keys[0]] = self.texts.get(self._keys[0], 0) + len(data) - 2
            elif kind == ":" and self._keys:
                self._keys[-1] = _decoded(self._string)
            if kind not in ("rest", "part"):
                self._is_value = kind == ":"

    def _inside_list(self, kind: str, data: bytes) -> Iterator[tuple[Keys, bytes]]:
        ends_list = kind == "]" and self._depth == 0
        if (kind == "," and self._depth == 0) or ends_list:
            if self._element is not None and (self._is_long or self._element.strip()):
                yield tuple(self._keys), b"" if self._is_long else bytes(self._element.strip())
            self._element, self._is_long = None, False
            self._in_list = not ends_list
            return
        if kind in "{[":
            self._depth += 1
        elif kind in "}]":
            self._depth -= 1
        if self._element is None:
            self._element = bytearray()
        if self._is_long or len(self._element) + len(data) > self._limit:
            self._is_long = True
            self._element.clear()
        else:
            self._element += data


def _tokens(chunks: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Brackets, colons, commas, strings (also the parts of a long one) and what is between them.

    A string comes as ``string`` when it is whole and short, else as several ``part``.
    """
    in_string = escaped = False
    begun = bytearray()
    for chunk in chunks:
        position = 0
        while position < len(chunk):
            if in_string:
                start = position
                while position < len(chunk):
                    if escaped:
                        escaped = False
                        position += 1
                        continue
                    found = _STRING_END.search(chunk, position)
                    if found is None:
                        position = len(chunk)
                    elif found[0] == b"\\":
                        escaped = True
                        position = found.end()
                    else:
                        position = found.end()
                        in_string = False
                        break
                begun += chunk[start:position]
                if not in_string:
                    yield "string", bytes(begun)
                    begun.clear()
                elif len(begun) > 2**20:
                    yield "part", bytes(begun)
                    begun.clear()
                continue
            found = _MARKS.search(chunk, position)
            if found is None:
                yield "rest", chunk[position:]
                break
            if found.start() > position:
                yield "rest", chunk[position : found.start()]
            position = found.end()
            if found[0] == b'"':
                in_string = True
                begun += b'"'
            else:
                yield found[0].decode(), found[0]


def _decoded(string: bytes) -> str:
    try:
        return str(json.loads(string[: _LONGEST_KEY * 6].decode("utf-8", "replace")))
    except ValueError:
        return ""
