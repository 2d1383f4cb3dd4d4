"""Index of a cache's rows: from a row's hash to a shard and a place in it.

The arrays take 24 bytes per row, so the index of a cache far larger than memory is small: 20 million rows (10 billion
tokens in rows of 512, some 310 GB of records) take 480 MB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class RowIndex:
    """Rows by hash.

    A row may occur twice: scored first for training, and then, for another run, for evaluation. The one with the
    teacher's first choice serves both purposes, so a lookup returns that one.
    """

    def __init__(self) -> None:
        self._keys = np.empty((0, 2), np.uint64)  # both halves of the hash, sorted by the first
        self._places = np.empty(0, np.int64)  # shard and row, as one number
        self._with_top1: set[int] = set()

    def __len__(self) -> int:
        return len(self._places)

    def add(self, shards: Sequence[tuple[int, NDArray[np.uint8], bool]]) -> None:
        """Add the rows of some shards: the number, the rows' hashes [rows, 16], and whether it has first choices."""
        if not shards:
            return
        keys = [np.ascontiguousarray(hashes).view("<u8").astype(np.uint64) for _, hashes, _ in shards]
        places = [(number << 32) + np.arange(len(hashes), dtype=np.int64) for number, hashes, _ in shards]
        self._keys = np.concatenate([self._keys, *keys])
        self._places = np.concatenate([self._places, *places])
        self._with_top1 |= {number for number, _, has_top1 in shards if has_top1}
        order = np.argsort(self._keys[:, 0], kind="stable")  # merges, as most values are already sorted
        self._keys, self._places = self._keys[order], self._places[order]

    def drop(self, shard: int) -> None:
        """Remove the rows of a shard."""
        kept = self._places >> 32 != shard
        self._keys, self._places = self._keys[kept], self._places[kept]
        self._with_top1.discard(shard)

    def find(self, hashes: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shard and the place in it of each row; -1 and 0 for a missing row."""
        wanted = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)
        best = np.full(len(wanted), -1, np.int64)
        at = np.searchsorted(self._keys[:, 0], wanted[:, 0])
        searching = np.arange(len(wanted))
        while True:  # usually one iteration; more only for equal first halves
            searching = searching[at[searching] < len(self._keys)]
            searching = searching[self._keys[at[searching], 0] == wanted[searching, 0]]
            if not len(searching):
                break
            same = searching[self._keys[at[searching], 1] == wanted[searching, 1]]
            found = self._places[at[same]]
            better = (best[same] < 0) | self.has_top1(found >> 32)
            best[same[better]] = found[better]
            at[searching] += 1
        return np.where(best < 0, -1, best >> 32), np.where(best < 0, 0, best & 0xFFFF_FFFF)

    def has_top1(self, shards: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each of these shards has the teacher's first choices."""
        return np.isin(shards, list(self._with_top1))
