"""The journal: one line for each complete shard. Shards that are not in the journal do not belong to the cache.

A line is appended and flushed to the disk after its shard. A kill can leave a torn last line; any other invalid line
is damage, which is reported.

A cache's only writer appends to ``journal.jsonl``. Several writers at a time, the ranks of a run or of several
machines, each have a journal and shards under a name of their own, drawn when they begin: ``rank-00002-9f3c01ab.jsonl``
and ``rank-00002-9f3c01ab-00000.h5``. So they need no lock and no order among each other, which some network file
systems do not give. Readers merge all journals.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.disk.fault import commit_point
from engine.disk.files import fsync_folder, write_atomic

JOURNAL = "journal.jsonl"
_NAME = re.compile(r"(?:shard|rank-\d{5}-[0-9a-f]{8})-(\d{5,9})\.h5")
_OF_RANKS = "rank-*.jsonl"
_SHARDS = ("shard-*.h5", "rank-*.h5")
PATTERNS = (_OF_RANKS, *_SHARDS)
"""File names of shards, and of journals beside :data:`JOURNAL`."""
_ABANDONED_SECONDS = 86_400  # a rank, perhaps on another machine, that enters its shard this late does not exist


def journals_of_ranks(folder: Path) -> list[Path]:
    """Return the journals of writers that work side by side, in the order of their names."""
    return sorted(folder.glob(_OF_RANKS))


def shard_files(folder: Path) -> list[Path]:
    """Return the shards of a folder, whether they are in a journal or not."""
    return [file for pattern in _SHARDS for file in folder.glob(pattern)]


def may_be_written(file: Path) -> bool:
    """Return whether a file that no journal names may be one that a rank, perhaps of another machine, is writing."""
    if not file.name.startswith("rank-"):
        return False
    try:
        return time.time() - file.stat().st_mtime < _ABANDONED_SECONDS
    except OSError:
        return True


@dataclass(frozen=True)
class Writer:
    """The names of a writer's files.

    Attributes:
        prefix: of its shards.
        journal: its journal.
    """

    prefix: str = "shard"
    journal: str = JOURNAL

    @classmethod
    def of_rank(cls, rank: int) -> Writer:
        """A writer beside others, with names that no other writer has."""
        name = f"rank-{rank:05d}-{secrets.token_hex(4)}"
        return cls(name, f"{name}.jsonl")

    def shard(self, number: int) -> str:
        """The file name of its shard with a number."""
        return f"{self.prefix}-{number:05d}.h5"


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


def read_journals(folder: Path) -> dict[str, Journal]:
    """Read each journal of a cache, by the name of its file: that of the only writer first."""
    ranks = [path.name for path in journals_of_ranks(folder)]
    return {name: read_one(folder / name) for name in (JOURNAL, *ranks)}


def read_journal(folder: Path) -> Journal:
    """Read the journals of a cache as one; empty if there is none."""
    found = read_journals(folder).values()
    entries = {entry.name: entry for journal in found for entry in journal.entries}
    damaged = sum(journal.damaged_lines for journal in found)
    return Journal(list(entries.values()), damaged, all(journal.is_clean for journal in found))


def rewrite_journal(folder: Path, entries: list[ShardEntry], name: str = JOURNAL) -> None:
    """Replace the entries of a journal; on an error the old journal stays.

    Raises:
        DiskFull: no room.
    """
    write_atomic(folder / name, "".join(entry.line() for entry in entries))


def append_entry(folder: Path, entry: ShardEntry, name: str = JOURNAL) -> None:
    """Append a line and flush it to the disk.

    Raises:
        OSError: the line was not written; the journal is unchanged.
    """
    path = folder / name
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


def read_one(path: Path) -> Journal:
    """Read one writer's journal; empty if there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Journal([], 0, True)
    whole, _, torn = content.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    found = [_entry(line) for line in lines]
    entries = {entry.name: entry for entry in found if entry is not None}
    return Journal(list(entries.values()), found.count(None), not torn and len(entries) == len(lines))


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
