"""Records made by chance, for the tests of the cache."""

from __future__ import annotations

import hashlib

import numpy as np

from engine.cache.record import Places, Records


def random_records(num: int, size: int, vocab_size: int, seed: int = 0, top1: bool = False) -> Records:
    random = np.random.default_rng(seed)
    ids = np.stack([random.choice(vocab_size, size, replace=False) for _ in range(num)] or [[0] * size])[:num].astype(
        np.int32
    )
    num_head = random.integers(0, size + 1, num).astype(np.uint8)
    raw = -np.sort(random.exponential(2.0, (num, size)), axis=1) - np.log(2.0 * size)  # falling, sum below 1
    is_head = np.arange(size) < num_head[:, None]
    log_probs = np.where(is_head, raw, -np.inf).astype(np.float32)
    mass = np.where(num_head == size, 0.0, 1 - np.exp(log_probs).sum(1)).astype(np.float32)
    ids[:] = np.where(is_head, ids, np.sort(np.where(is_head, -1, ids), axis=1))
    return Records(
        ids=ids,
        num_head=num_head,
        head_log_probs=log_probs,
        tail_mass=mass,
        label_log_prob=-random.exponential(3.0, num).astype(np.float32),
        entropy=random.exponential(3.0, num).clip(0, 12).astype(np.float32),
        top1_id=ids[:, 0] if top1 else None,
        top1_log_prob=-random.exponential(1.0, num).astype(np.float32) if top1 else None,
    )


def some_places(num: int, seed: int = 0) -> Places:
    return Places(seed, np.full(num, 4711, np.uint64), np.arange(num))


def row(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def wave(number: int, rows: int = 3, top1: bool = False) -> tuple[list[tuple[bytes, int]], Records]:
    """Some rows with their records; a row may have none."""
    counts = [(number * 5 + place) % 7 for place in range(rows)]
    named = [(row(number * 100 + place), count) for place, count in enumerate(counts)]
    return named, random_records(sum(counts), 6, 300, seed=number, top1=top1)
