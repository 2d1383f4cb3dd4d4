"""journal.jsonl: one line for each complete shard. Shards that are not in the journal do not belong to the cache.

A line is appended and flushed to the disk after its shard. A kill can leave a torn last line; any other invalid line
is damage, which is reported.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.disk.fault import commit_point
from engine.disk.files import fsync_folder, write_atomic

JOURNAL = "journal.jsonl"
_NAME = re.compile(r"shard-(\d{5,9})\.h5")


@dataclass(frozen=True)
class ShardEntry:
    """A line of the journal: one complete shard.

    Attributes:
        name: file name.
        rows: rows in it.
        tokens: positions with a record.
        bytes: size of the file.
        sha256: of the file.
        has_top1: whether it has the teacher's first choices, which evaluation needs.
    """

    name: str
    rows: int
    tokens: int
    bytes: int
    sha256: str
    has_top1: bool

    @property
    def number(self) -> int:
        """The number in the name."""
        match = _NAME.fullmatch(self.name)
        assert match, "checked when the line was read"
        return int(match[1])

    def line(self) -> str:
        """The line of the journal."""
        return json.dumps(asdict(self)) + "\n"


def shard_name(number: int) -> str:
    """The file name of the shard with a number."""
    return f"shard-{number:05d}.h5"


@dataclass(frozen=True)
class Journal:
    """Content of a journal.

    Attributes:
        entries: the shards, in the order they were committed.
        damaged_lines: invalid lines before the last one.
        is_clean: whether the file has exactly these entries.
    """

    entries: list[ShardEntry]
    damaged_lines: int
    is_clean: bool


def read_journal(folder: Path) -> Journal:
    """Read the journal of a cache; empty if there is none."""
    try:
        content = (folder / JOURNAL).read_bytes()
    except FileNotFoundError:
        return Journal([], 0, True)
    whole, _, torn = content.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    found = [_entry(line) for line in lines]
    entries = {entry.name: entry for entry in found if entry is not None}
    return Journal(list(entries.values()), found.count(None), not torn and len(entries) == len(lines))


def rewrite_journal(folder: Path, entries: list[ShardEntry]) -> None:
    """Replace the journal's entries; on an error the old journal stays.

    Raises:
        DiskFull: no room.
    """
    write_atomic(folder / JOURNAL, "".join(entry.line() for entry in entries))


def append_entry(folder: Path, entry: ShardEntry) -> None:
    """Append a line and flush it to the disk.

    Raises:
        OSError: the line was not written; the journal is unchanged.
    """
    path = folder / JOURNAL
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        data = entry.line().encode()
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            commit_point("journal-written")
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        fsync_folder(folder)
    commit_point("journal-synced")


def _entry(line: bytes) -> ShardEntry | None:
    try:
        entry = ShardEntry(**json.loads(line))
        numbers = (entry.rows, entry.tokens, entry.bytes)
        good = (
            isinstance(entry.name, str)
            and _NAME.fullmatch(entry.name) is not None  # a name cannot point outside of this folder
            and all(type(number) is int and number >= 0 for number in numbers)
            and isinstance(entry.sha256, str)
            and isinstance(entry.has_top1, bool)
        )
    except (ValueError, TypeError, RecursionError):
        return None
    return entry if good else None
