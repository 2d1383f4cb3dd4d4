"""Descriptions of files that a process has made: each is made once, and again when one of its files changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_State = tuple[tuple[str, int, int, int], ...]

_SETTLED_NS = 2 * 10**9
"""Age from which a file's time of change tells two contents apart: file systems have coarse clocks."""


class Descriptions(Generic[T]):
    """The newest descriptions by key.

    A description is kept with the size and time of change of the files that it was made from. One of files that have
    just changed is not kept, since their next change could have the same time.
    """

    def __init__(self, most: int) -> None:
        """``most``: descriptions that are kept; a new one takes the place of the oldest."""
        self._most = most
        self._found: dict[Hashable, tuple[T, _State]] = {}

    def of(self, key: Hashable, make: Callable[[], T], files: Callable[[T], Iterable[Path]]) -> T:
        """Return the description of a key.

        Args:
            key: names the description.
            make: makes it; its exceptions are the caller's.
            files: the files and folders that a description was made from.
        """
        kept = self._found.get(key)
        if kept is not None and _state(files(kept[0])) == kept[1]:
            return kept[0]
        began = time.time_ns()
        made = make()
        state = _state(files(made))
        if all(changed < began - _SETTLED_NS for *_, changed in state):
            self._found.pop(key, None)
            self._found[key] = made, state
            for oldest in list(self._found)[: -self._most]:
                self._found.pop(oldest, None)  # of several threads, another one may have removed it
        return made

    def forget(self) -> None:
        """Give the memory of all descriptions back."""
        self._found.clear()


def _state(files: Iterable[Path]) -> _State:
    """Name, number, size and time of change of each file that is there."""
    found = []
    for file in sorted(set(files)):
        try:
            told = os.stat(file)
        except OSError:
            continue  # a file that is gone makes another state
        found.append((str(file), told.st_ino, told.st_size, told.st_ctime_ns))
    return tuple(found)


def entries(folder: Path) -> set[Path]:
    """A folder and what is in it; the folder alone where it cannot be read."""
    try:
        return {folder, *folder.iterdir()}
    except OSError:
        return {folder}
