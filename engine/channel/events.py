"""Events of a run in order, one JSON object per line.

The engine writes them; the wizard, the progress bar, ``--json`` and the report read them. Several processes append to
the same file: each line is one ``write`` on a descriptor opened with O_APPEND, so lines do not mix. A torn last line
(a kill, a full disk) is left alone by readers and closed with a newline by the next writer.

This file knows nothing of torch, and of what the events mean only their words (:mod:`engine.channel.words`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.channel import last_word
from engine.channel.words import log_line

Event = dict[str, Any]

_LAST = frozenset({"error", "run_finished"})
"""Events without which a reader takes the run for one that was killed."""


class EventWriter:
    """Writer of events to ``events.jsonl`` and, as text, to ``run.log``.

    Args:
        path: the events file; made when it is missing.
        phase: goes into every event, where given.
        log_path: the file for a user; none when None.
        make_room: frees a little room on a full disk, for the events that tell how the run ended.
    """

    def __init__(
        self, path: Path, *, phase: str | None = None, log_path: Path | None = None,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.phase = phase
        self._make_room = make_room
        self._file = _Appended(path)
        self._log = _Appended(log_path) if log_path else None

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event.

        A failed write loses the event but does not end the run: the phase's own writes report a full disk. For what
        ended the run, room is made.
        """
        event: Event = {"time": round(time.time(), 3), "kind": kind}
        if self.phase is not None and "phase" not in fields:
            event["phase"] = self.phase
        event.update(fields)
        if kind == "error":
            last_word.say(event)
        words = json.dumps(_finite(event), ensure_ascii=False, default=str)
        if not self._file.append(words) and kind in _LAST:
            self._make_room()
            self._file.append(words)
        if self._log is not None and (line := log_line(event)) is not None:
            clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.time))
            self._log.append(f"{clock} {line.level:7} {line.text}")

    def log(self, level: str, message: str, code: str | None = None) -> None:
        """A sentence for a user; ``level`` is debug, info, warning or error; ``code`` never changes its meaning."""
        self.write("log", level=level, message=message, **({"code": code} if code else {}))

    def text(self, text: str) -> None:
        """Lines for ``run.log`` alone: a traceback, a library's chatter."""
        if self._log is not None:
            self._log.append(text.rstrip("\n"))

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._log is not None:
            self._log.close()


def read_events(path: Path) -> Iterator[Event]:
    """All whole events of a file, oldest first; a missing file has none."""
    yield from Tail(path).read()


class Tail:
    """Reader of events appended since the last call.

    Attributes:
        bad_lines: lines that were no JSON object.
        size, offset: bytes there are and bytes read, for "reading 61 %".
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self.path = path
        self.bad_lines = 0
        self.size = 0
        self.offset = 0
        self._inode = 0
        self._torn = b""
        if from_end:
            with contextlib.suppress(OSError):
                status = path.stat()
                self._inode, self.offset = status.st_ino, status.st_size

    def read(self, limit_bytes: int = 1 << 62) -> list[Event]:
        """New whole events, at most about ``limit_bytes`` of them; a file that was replaced or cut is read again."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self.offset:
                    self._inode, self.offset, self._torn = status.st_ino, 0, b""
                self.size = status.st_size
                file.seek(self.offset)
                chunk = file.read(min(limit_bytes, max(0, self.size - self.offset)))
        except OSError:
            return []
        self.offset += len(chunk)
        *lines, self._torn = (self._torn + chunk).split(b"\n")
        return [event for line in lines if (event := self._parse(line)) is not None]

    def _parse(self, line: bytes) -> Event | None:
        if not line.strip():
            return None
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
            self.bad_lines += 1
            return None
        return event


class _Appended:
    """A file that whole lines are appended to; what the disk does not take is lost."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        size = os.fstat(self._descriptor).st_size
        # The last writer was killed in mid-line, or the disk was full.
        self._is_torn = bool(size) and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def append(self, line: str) -> bool:
        """Append a line; returns whether all of it was written."""
        data = (b"\n" if self._is_torn else b"") + line.encode("utf-8", "replace") + b"\n"
        try:
            written = os.write(self._descriptor, data)
        except OSError:  # full, over its quota, read-only by now, failed: the next write of the work itself reports it
            return False
        self._is_torn = written < len(data)
        return not self._is_torn

    def close(self) -> None:
        os.close(self._descriptor)


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON: they become None, and the ``log`` beside them says what happened."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
