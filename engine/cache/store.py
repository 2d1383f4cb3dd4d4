"""A cache: a folder of shards with its identity, journal and index of rows.

::

    manifest.json     teacher and settings of the records (identity.py)
    journal.jsonl     the complete shards, in the order of their commits (journal.py)
    shard-00000.h5    records of some rows (shard.py)
    rank-…            journals and shards of writers that worked side by side
    lock, in-use      locks of the writer and of all users (locks.py)
    used-by.jsonl     the runs that opened the cache, for garbage collection
    *.bad             damaged shards; their rows count as missing

A shard is made in memory, written under a temporary name, flushed and renamed; then the folder is flushed and the shard
is entered in the journal. Every shard in the journal is complete. A kill leaves at most one file that is not in the
journal, and the next writer removes it. (Shards that are not in the journal are not adopted: they would need full
verification, and the window between rename and journal entry is only some milliseconds.)

One process writes at a time; another one can wait for it and then use the rows that it scored. Or several ranks write
side by side, each with a journal and shards of its own. Readers need no lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engine.cache.counter import row_key
from engine.cache.identity import MANIFEST, CacheIdentity, check_identity, read_manifest, write_manifest
from engine.cache.index import RowIndex
from engine.cache.journal import (
    ShardEntry,
    Writer,
    append_entry,
    journals_of_ranks,
    may_be_written,
    read_journal,
    read_journals,
    read_one,
    rewrite_journal,
    shard_files,
)
from engine.cache.locks import Locks
from engine.cache.record import EncodedRecords, Places, Records, decode, encode
from engine.cache.shard import DamagedShard, Shard, shard_image, write_shard
from engine.disk.files import NO_ROOM, make_folder, no_room
from engine.errors import CorruptState, DiskFull, FolderError, RecordsMissing, TinyDistillError

__all__ = ["CacheIdentity", "CacheStore", "ShardEntry", "caches_below"]

USED_BY = "used-by.jsonl"
_WAIT_SECONDS = 0.5
_GONE = (errno.EIO, errno.ENOENT)  # errors of a bad disk; too many open files is not an error of the file


class CacheStore:
    """An open cache; a context manager, not thread-safe.

    Attributes:
        path: the folder.
        identity: teacher and settings of its records.
        problems: descriptions of damage; the rows concerned count as missing.
    """

    def __init__(
        self, path: Path, identity: CacheIdentity, locks: Locks, *, writable: bool, rank: int | None = None
    ) -> None:
        self.path = path
        self.identity = identity
        self.problems: list[str] = []
        self._digest = identity.digest()
        self._writable = writable
        self._only_looks = False
        self._locks = locks
        self._writer = Writer() if rank is None else Writer.of_rank(rank)
        self._is_alone = rank is None
        self._next = 0  # number of this writer's next shard
        self._others: dict[str, tuple[int, int]] = {}  # bytes and tokens of other writers' journals
        # Shards by a number that is given when they are opened; files of several writers have the same numbers.
        self._numbers: dict[str, int] = {}
        self._entries: dict[int, ShardEntry] = {}
        self._shards: dict[int, Shard] = {}
        self._index = RowIndex()
        self._checked: set[int] = set()

    @classmethod
    def open(
        cls,
        path: Path,
        identity: CacheIdentity,
        *,
        writable: bool,
        used_by: Path | None = None,
        wait: Callable[[], None] | None = None,
        rank: int | None = None,
    ) -> Self:
        """Open a cache; a writer creates it if it is missing, and repairs what a kill left.

        Args:
            path: the folder.
            identity: required teacher and settings of its records.
            writable: whether shards will be committed.
            used_by: the run's folder, stored so that garbage collection can check whether that run is finished; None
                for a cache in that folder, which is not made again.
            wait: called twice per second while another process writes; may raise to give up. Without it the cache
                is refused at once.
            rank: of a writer beside others; None for one that writes alone.

        Raises:
            CacheMismatch: the records have another teacher or other settings; the message lists all differences.
            FolderError: another process is writing to it, or it cannot be created or read.
            CorruptState: the teacher and settings of the records are unknown.
            DiskFull: there is no room for a manifest.
            FileNotFoundError: the run's folder is gone.
        """
        parents = used_by is not None
        locks = _locks_for_writing(path, wait, beside=rank is not None, parents=parents) if writable else Locks(path)
        store = cls(path, identity, locks, writable=writable, rank=rank)
        try:
            if path.is_dir() and not locks.use():
                raise FolderError(f"The cache {path} is being removed.", "", "Try again in a moment.")
            store._check_manifest()
            store._load()
            if used_by is not None:
                store._remember_user(used_by)
        except OSError as error:
            store.close()
            raise _unusable(path, error) from error
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def look(cls, path: Path) -> Self:
        """Open an existing cache read-only; damaged files are not moved.

        Raises:
            FolderError: there is no cache.
            CacheMismatch: another version wrote it.
            CorruptState: the teacher and settings of the records are unknown.
        """
        identity = read_manifest(path)
        if identity is None:
            raise FolderError(
                f"{path} holds no records of a teacher.",
                "" if path.is_dir() else "There is no such folder.",
                "Name a run's folder, its cache, or a --cache_dir.",
            )
        identity.check_format(path)
        store = cls(path, identity, Locks(path), writable=False)
        store._only_looks = True
        try:
            store._load()
        except OSError as error:
            raise _unusable(path, error) from error
        return store

    @property
    def without_locks(self) -> bool:
        """Return whether the file system has no locks, so that a file names the only writer; ranks need neither."""
        return self._locks.missing and self._is_alone

    @property
    def entries(self) -> list[ShardEntry]:
        """The shards, in the order of their commits."""
        return list(self._entries.values())

    @property
    def num_tokens(self) -> int:
        """Positions that have a record."""
        return sum(entry.tokens for entry in self.entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(entry.bytes for entry in self.entries)

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.entries)

    def missing(self, hashes: Sequence[bytes], *, top1: bool = False) -> list[int]:
        """Return the indices in ``hashes`` of rows without records; with ``top1``, of rows without the first choice."""
        shards, _ = self._index.find(hashes)
        absent = shards < 0
        if top1:
            absent |= ~self._index.has_top1(shards)
        return np.flatnonzero(absent).tolist()

    def fetch(self, hashes: Sequence[bytes]) -> Records:
        """Return the records of some rows, one row after the other.

        Raises:
            RecordsMissing: a row has none, or its shard is damaged; that shard is set aside, and the teacher scores
                its rows again.
        """
        shards, rows = self._index.find(hashes)
        if (shards < 0).any():
            raise RecordsMissing(
                f"{int((shards < 0).sum())} of {len(hashes)} rows have no record in {self.path}.",
                "The student can only train on rows with records.",
                "Resume the run: they are scored again.",
            )
        parts = [self._read(shard, row, row + 1) for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]
        return decode(parts, self.identity.ids_in_record)

    def commit(self, rows: Sequence[tuple[bytes, int]], records: Records, places: Places | None = None) -> ShardEntry:
        """Add one shard; after this returns, its rows survive a power loss.

        Args:
            rows: each row's hash and number of records.
            records: row after row.
            places: counters of the stochastic rounding of each record; its row and its number in the row by default.

        Raises:
            DiskFull: no room; the cache is unchanged.
        """
        assert self._writable, "opened for reading"
        assert sum(count for _, count in rows) == len(records), "each row brings its records"
        assert records.ids.shape[1] == self.identity.ids_in_record, "a cache's records are of one size"
        counts = [count for _, count in rows]
        encoded = encode(records, self.identity.vocab_size, places or _places(self.identity.seed, rows), counts)
        image = shard_image(
            [name for name, _ in rows], encoded, records.num_head.astype(np.int64), belongs_to=self._digest
        )
        path = self.path / self._writer.shard(self._next)
        try:
            sha256 = write_shard(path, image)
            entry = ShardEntry(path.name, len(rows), len(records), len(image), sha256, records.top1_id is not None)
            try:
                append_entry(self.path, entry, self._writer.journal)
            except OSError:
                path.unlink(missing_ok=True)
                raise
        except OSError as error:
            if error.errno in NO_ROOM:
                raise self._full(len(image), error) from error
            raise
        self._next += 1
        self._add([(entry, Shard(path))])
        return entry

    def tokens_of_others(self) -> int:
        """Positions that other ranks have committed since this store was opened; their rows stay missing here."""
        known = {entry.name for entry in self.entries}
        for path in journals_of_ranks(self.path):
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                if path.name != self._writer.journal and self._others.get(path.name, (-1, 0))[0] != size:
                    fresh = [entry for entry in read_one(path).entries if entry.name not in known]
                    self._others[path.name] = size, sum(entry.tokens for entry in fresh)
        return sum(tokens for _, tokens in self._others.values())

    def shard(self, entry: ShardEntry) -> Shard:
        """The file of an entry."""
        return self._shards[self._numbers[entry.name]]

    def peek(self, entry: ShardEntry, first: int, last: int) -> Records:
        """Return the records of some rows of a shard, by their place in it, without verification.

        Raises:
            DamagedShard: they cannot be read.
        """
        encoded = self.shard(entry).read(first, last)
        try:
            return decode([encoded], self.identity.ids_in_record)
        except ValueError as error:
            raise DamagedShard("a record cannot be decoded") from error

    def close(self) -> None:
        """Release the locks."""
        self._locks.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_manifest(self) -> None:
        there = read_manifest(self.path)
        if there is not None:
            check_identity(self.path, there, self.identity)
            return
        # The manifest is written first, so no kill leaves shards without one.
        if read_journal(self.path).entries:
            raise CorruptState(
                f"{self.path / MANIFEST} is missing.",
                "Without it, the teacher and settings of the records are unknown.",
                f"Delete {self.path} and resume the run: the rows are scored again.",
            )
        if self._writable:
            write_manifest(self.path, self.identity)

    def _load(self) -> None:
        journals = read_journals(self.path)
        damaged_lines = sum(journal.damaged_lines for journal in journals.values())
        if damaged_lines:
            self.problems.append(f"{damaged_lines} lines of the journal in {self.path} cannot be read.")
        for name, journal in journals.items():
            found = []
            for entry in journal.entries:
                try:
                    found.append((entry, self._opened(entry)))
                except DamagedShard as damage:
                    self._set_aside(entry.name, str(damage))
            self._add(found)
            # A rank that was killed leaves a torn line, and its journal gets no further ones.
            is_clean = journal.is_clean or name != self._writer.journal
            if self._writable and self._is_alone and not (is_clean and len(found) == len(journal.entries)):
                rewrite_journal(self.path, [entry for entry, _ in found], name)
        if self._writable and self._is_alone:
            self._next = 1 + max((e.number for e in self.entries if e.name == self._writer.shard(e.number)), default=-1)
            self._sweep(journals_are_whole=not damaged_lines)

    def _opened(self, entry: ShardEntry) -> Shard:
        """Open a shard and check its header; its bytes are verified at the first read."""
        path = self.path / entry.name
        with contextlib.suppress(FileNotFoundError):
            if (size := path.stat().st_size) != entry.bytes:
                raise DamagedShard(f"it has {size:,} bytes, not {entry.bytes:,}")
        shard = Shard(path)
        if (shard.num_rows, shard.num_records) != (entry.rows, entry.tokens):
            raise DamagedShard("it holds other rows than the journal lists")
        if shard.belongs_to != self._digest:
            raise DamagedShard("it belongs to another cache")
        return shard

    def _add(self, found: list[tuple[ShardEntry, Shard]]) -> None:
        first = 1 + max(self._entries, default=-1)
        self._numbers |= {entry.name: first + place for place, (entry, _) in enumerate(found)}
        self._entries |= {first + place: entry for place, (entry, _) in enumerate(found)}
        self._shards |= {first + place: shard for place, (_, shard) in enumerate(found)}
        self._index.add([(first + place, shard.hashes, entry.has_top1) for place, (entry, shard) in enumerate(found)])
        for _, shard in found:
            del shard.hashes  # the index has them

    def _sweep(self, *, journals_are_whole: bool) -> None:
        """Remove files that are not in a journal; those of ranks when they are old, as a rank may be at work."""
        known = {entry.name for entry in self.entries}
        for file in self.path.glob("*.tmp"):
            if not may_be_written(file):
                file.unlink(missing_ok=True)
        for file in shard_files(self.path):
            if file.name in known or may_be_written(file):
                continue
            if journals_are_whole:
                file.unlink(missing_ok=True)
            else:  # a damaged line may have been this one's
                self._set_aside(file.name, "it is not in the journal")

    def _read(self, number: int, first: int, last: int) -> EncodedRecords:
        """Return some rows of a shard, which is verified at its first read in this process."""
        entry = self._entries[number]
        shard = self._shards[number]
        try:
            if number not in self._checked:
                shard.check(entry.sha256)
                self._checked.add(number)
            return shard.read(first, last)
        except DamagedShard as damage:
            wrong = str(damage)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            wrong = f"it cannot be read ({error.strerror})"
        self._drop(entry)
        raise RecordsMissing(
            self._set_aside(entry.name, wrong),
            f"It held the records of {entry.rows:,} rows.",
            "Resume the run: they are scored again.",
        )

    def _drop(self, entry: ShardEntry) -> None:
        number = self._numbers.pop(entry.name)
        del self._entries[number]
        del self._shards[number]
        self._index.drop(number)

    def _set_aside(self, name: str, wrong: str) -> str:
        """Set a damaged shard aside and report it."""
        file = self.path / name
        aside = file.with_name(name + ".bad")
        if not self._only_looks:
            with contextlib.suppress(OSError):
                file.rename(aside)
        kept = f"; it is kept as {aside.name} and not used" if aside.exists() else ""
        self.problems.append(f"The shard {file} is damaged ({wrong}){kept}.")
        return self.problems[-1]

    def _remember_user(self, run: Path) -> None:
        """Add the run to the list of users; a read-only cache needs none, as it cannot be cleaned up."""
        path = self.path / USED_BY
        line = json.dumps({"run": str(run)}) + "\n"
        with contextlib.suppress(OSError):
            if not path.exists() or line not in path.read_text(encoding="utf-8"):
                with path.open("a", encoding="utf-8") as file:
                    file.write(line)

    def _full(self, needed: int, error: OSError) -> DiskFull:
        free = shutil.disk_usage(self.path).free
        what = f"There was no room for {needed:,} bytes of records in {self.path}; {free:,} are free."
        return no_room(what, error, kept="earlier records are kept")


def caches_below(folder: Path) -> Iterator[Path]:
    """Return the caches in a folder: itself, or those directly below it."""
    if (folder / MANIFEST).exists():
        yield folder
    elif folder.is_dir():
        yield from sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))


def _locks_for_writing(path: Path, wait: Callable[[], None] | None, *, beside: bool, parents: bool) -> Locks:
    while True:
        try:
            make_folder(path, parents=parents)
            locks = Locks(path)
            if locks.try_beside() if beside else locks.try_writer():
                return locks
        except FileNotFoundError:  # it is being removed now, or the run's folder is gone
            if not parents and not path.parent.is_dir():
                raise
            continue
        except OSError as error:
            raise _unusable(path, error) from error
        if wait is None:
            raise FolderError(
                f"Another run is writing the records in {path}.",
                "One process at a time writes to a cache.",
                "Wait until that run has scored its rows, then resume this one: rows that it scored are not scored "
                "again.",
            )
        wait()
        time.sleep(_WAIT_SECONDS)


def _unusable(path: Path, error: OSError) -> TinyDistillError:
    reason = f"{error.filename or path}: {os.strerror(error.errno or 0)}"
    if error.errno in NO_ROOM:
        return no_room(f"There was no room for {reason}.", error)
    return FolderError(
        f"The cache {path} cannot be used ({reason}).",
        "The teacher's records are stored there.",
        "Fix that, or choose another --cache_dir or --output_dir.",
    )


def _places(seed: int, rows: Sequence[tuple[bytes, int]]) -> Places:
    counts = np.array([count for _, count in rows], np.int64)
    keys: NDArray[np.uint64] = np.array([row_key(row_hash) for row_hash, _ in rows], np.uint64)
    positions = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return Places(seed, np.repeat(keys, counts), positions)
