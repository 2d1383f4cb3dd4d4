"""A fact that the probe finds out about this machine, kept in the cache folder and read once in a process."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from engine.disk import places
from engine.disk.files import write_atomic
from engine.errors import DiskFull


class KeptFact:
    """A fact that has one value for each installation or processor.

    Args:
        entry: its name in the files.
    """

    def __init__(self, entry: str) -> None:
        self._entry = entry
        self._known: dict[Path, object] = {}

    def read(self, name: str) -> object:
        """Return the value; None if it was never kept, or its file is damaged.

        Args:
            name: of the file, without its ending: whatever the fact holds for has a file of its own.
        """
        path = places.cache() / f"{name}.json"
        if path not in self._known:
            self._known[path] = self._read(path)
        return self._known[path]

    def keep(self, name: str, value: object) -> None:
        """Keep a value; where the disk does not take it, it is known to this process alone."""
        path = places.cache() / f"{name}.json"
        self._known[path] = value
        with contextlib.suppress(OSError, DiskFull):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps({self._entry: value}) + "\n")

    def _read(self, path: Path) -> object:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found: object = json.loads(path.read_text(encoding="utf-8"))[self._entry]
            return found
        return None
