"""Verification of a cache: every byte, every record, and files in the folder that the journal does not name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from engine.cache.journal import ShardEntry, may_be_written, read_journal, shard_files
from engine.cache.record import LARGEST_ENTROPY, Records
from engine.cache.shard import DamagedShard
from engine.cache.store import CacheStore

_PIECE_TOKENS = 2**15  # some 10 MB of decoded records at a time
_SUM_ERROR = 1e-5  # of weights in float32


def damaged_shards(
    store: CacheStore, on_progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[ShardEntry, str]]:
    """Read and check every record of every shard.

    Args:
        store: an open cache; it is not changed.
        on_progress: called with the bytes done and the bytes of all shards.

    Yields:
        Each damaged shard and a description of the damage, a sentence fragment.
    """
    done = 0
    for entry in store.entries:
        wrong = _shard_problem(store, entry)
        if wrong is not None:
            yield entry, wrong
        done += entry.bytes
        if on_progress is not None:
            on_progress(done, store.num_bytes)


def leftovers(store: CacheStore) -> list[Path]:
    """Return files that a kill or damage has left in the folder and that no code reads."""
    journal = read_journal(store.path)
    found = [file for file in store.path.glob("*") if file.suffix in (".tmp", ".bad")]
    if not journal.damaged_lines:  # a damaged line may have named any of them
        known = {entry.name for entry in journal.entries}
        found += [file for file in shard_files(store.path) if file.name not in known]
    return sorted(file for file in found if file.suffix == ".bad" or not may_be_written(file))


def record_problem(records: Records, vocab_size: int) -> str | None:
    """Return the problem of decoded records as a sentence fragment."""
    size = records.ids.shape[1]
    if not len(records):
        return None
    if int(records.ids.min()) < 0 or int(records.ids.max()) >= vocab_size:
        return f"a record names an id that is not below {vocab_size:,}"
    if (np.diff(np.sort(records.ids, axis=1), axis=1) == 0).any():
        return "a record names an id twice"
    if int(records.num_head.max()) > size:
        return "a record has more heads than ids"
    if not (abs(records.weights().sum(1) - 1) < _SUM_ERROR).all():
        return "the weights of a record do not sum to 1"
    if not ((records.entropy >= 0) & (records.entropy <= LARGEST_ENTROPY)).all():
        return "an entropy is out of range"
    if not (records.label_log_prob <= 0).all():
        return "a label's probability is above 1"
    if records.top1_id is not None and int(records.top1_id.max()) >= vocab_size:
        return f"a first choice is not below {vocab_size:,}"
    return None


def _shard_problem(store: CacheStore, entry: ShardEntry) -> str | None:
    try:
        shard = store.shard(entry)
        shard.check(entry.sha256)
        for first, last in pieces(store, entry, _PIECE_TOKENS):
            if wrong := record_problem(store.peek(entry, first, last), store.identity.vocab_size):
                return wrong
    except DamagedShard as damage:
        return str(damage)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None


def pieces(store: CacheStore, entry: ShardEntry, most_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield a shard's rows in pieces of at most this many records, or of one row if that has more."""
    shard = store.shard(entry)
    first = tokens = 0
    for row in range(shard.num_rows):
        tokens += shard.num_records_of(row)
        if tokens >= most_tokens:
            yield first, row + 1
            first, tokens = row + 1, 0
    if first < shard.num_rows:
        yield first, shard.num_rows
