"""Statistics of a cache: bytes by part, heads and tails, the teacher's entropy."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from engine.cache.check import pieces
from engine.cache.record import Records
from engine.cache.shard import DamagedShard
from engine.cache.store import CacheStore

SAMPLE_TOKENS = 200_000
_SAMPLE_SHARDS = 64
ENTROPY_STEP = 0.5  # nats


@dataclass(frozen=True)
class Summary:
    """Statistics of a cache.

    Attributes:
        rows, tokens, shards, bytes: of the whole cache.
        measured_tokens: tokens with the teacher's first choice, as the hold-out has it.
        parts: bytes of each part of the records, and of what is around them.
        sampled_tokens: number of tokens behind the statistics below, from shards all over the cache.
        mean_heads: exact ids in a record.
        mean_tail_mass: probability of the sampled ids together.
        mean_entropy: of the teacher, in nats.
        mean_label_log_prob: the teacher's own loss, negated, in nats.
        entropy_counts: tokens in each step of half a nat, from 0.
    """

    rows: int
    tokens: int
    shards: int
    bytes: int
    measured_tokens: int
    parts: dict[str, int]
    sampled_tokens: int
    mean_heads: float
    mean_tail_mass: float
    mean_entropy: float
    mean_label_log_prob: float
    entropy_counts: list[int]

    @property
    def bytes_per_token(self) -> float:
        """Bytes on disk per token."""
        return self.bytes / max(1, self.tokens)


def summarise(store: CacheStore) -> Summary:
    """Compute the statistics of a cache; reads the headers of all shards and some 200,000 records."""
    sample = _sample(store)
    count = max(1, len(sample))
    steps = (sample.entropy / ENTROPY_STEP).astype(np.int64)
    return Summary(
        rows=sum(entry.rows for entry in store.entries),
        tokens=store.num_tokens,
        shards=store.num_shards,
        bytes=store.num_bytes,
        measured_tokens=sum(entry.tokens for entry in store.entries if entry.has_top1),
        parts=_parts(store),
        sampled_tokens=len(sample),
        mean_heads=float(sample.num_head.sum() / count),
        mean_tail_mass=float(sample.tail_mass.sum() / count),
        mean_entropy=float(sample.entropy.sum() / count),
        mean_label_log_prob=float(sample.label_log_prob.sum() / count),
        entropy_counts=np.bincount(steps).tolist() if len(sample) else [],
    )


def _sample(store: CacheStore) -> Records:
    entries = store.entries
    chosen = entries[:: -(-len(entries) // _SAMPLE_SHARDS) or 1]
    found = []
    for entry in chosen:
        for first, last in pieces(store, entry, SAMPLE_TOKENS // len(chosen)):
            with contextlib.suppress(DamagedShard):  # verification reports it
                found.append(store.peek(entry, first, last))
            break
    return Records.concatenate(found) if found else Records.none(store.identity.ids_in_record)


def _parts(store: CacheStore) -> dict[str, int]:
    found: Counter[str] = Counter()
    for entry in store.entries:
        sizes = store.shard(entry).column_bytes()
        found.update(sizes)
        found["headers"] += entry.bytes - sum(sizes.values())
    return dict(found)
