"""The waves of a scoring: the rows that are scored together, and the rank that scores them.

A wave ends with one committed shard. Waves are cut from the list of *all* rows, the same for any number of ranks, so
that an interrupted run continues with its current wave, and a record is the same bit for bit whichever rank makes it.

Each rank has a fixed part of the waves, which it finds by itself. Parts differ by a wave at most. The last waves of the
longest split are shorter, so that this difference is small: of three long waves, one of two ranks would have two. They
are few, as a shard of fewer rows takes more bytes for each.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence

from engine.cache.store import CacheStore
from engine.channel.channel import Channel
from engine.data.tokens import Split, TokenFile
from engine.ranks import ALONE, Rank

# Shorter than a quarter, a wave has too few documents of each length to fill its micro-batches.
_LAST_WAVES, _PIECES = 2, 4
# A shard of fewer tokens takes notably more bytes for each (SmolLM2: 26.5 with some 1,000, 25.9 with 4,000).
_FEWEST_TOKENS = 4_096


class Waves:
    """The waves of a rank.

    Args:
        tokens: the rows.
        splits: those to score, in this order.
        rows_in_wave: of a long wave.
        fewest: rows of any wave, where there are as many.
        short_last: whether the last waves are short.
        rank: whose waves.
    """

    def __init__(
        self,
        tokens: TokenFile,
        splits: Sequence[Split],
        *,
        rows_in_wave: int,
        fewest: int,
        short_last: bool = False,
        rank: Rank = ALONE,
    ) -> None:
        self._hashes = {split: tokens.hashes(split) for split in splits}
        self._rows_in_wave = rows_in_wave
        self._fewest = fewest
        short = rows_in_wave
        if short_last:
            wanted = max(rows_in_wave // _PIECES, _FEWEST_TOKENS // tokens.sequence_length)
            short = min(rows_in_wave, max(1, wanted // fewest) * fewest)
        longest = max(splits, key=lambda split: len(self._hashes[split]))
        waves = [
            (split, rows)
            for split, hashes in self._hashes.items()
            for rows in cut(len(hashes), rows_in_wave, short if split == longest else rows_in_wave)
        ]
        owners = dealt([len(rows) for _, rows in waves], rank.world)
        self._own = [wave for wave, owner in zip(waves, owners, strict=True) if owner == rank.number]
        # Records of other ranks are not seen here, so a repeated row belongs to the wave of its first place.
        several = splits if rank.world > 1 else ()
        self._first_places = {
            split: _first_places(self._hashes[split], range(len(self._hashes[split]))) for split in several
        }

    def has_work(self, store: CacheStore) -> bool:
        """Return whether a row of this rank has no record."""
        return any(self._missing(store, split, rows) for split, rows in self._own)

    def left(self, store: CacheStore, channel: Channel) -> Iterator[tuple[Split, list[int]]]:
        """Yield the rows that this rank has to score, a wave at a time; half of one while memory is short.

        Args:
            store: has the records that are there.
            channel: its safe points are before each wave.
        """
        for split, rows in self._own:
            end = rows.start
            while end < rows.stop:
                channel.safe_point()
                start, end = end, rows.stop
                if channel.memory_is_short:
                    end = min(end, start + max(self._fewest, self._rows_in_wave // 2))
                if indices := self._missing(store, split, range(start, end)):
                    yield split, indices

    def _missing(self, store: CacheStore, split: Split, indices: range) -> list[int]:
        """Return the rows of a wave, or of a part of it, that have to be scored, without duplicates."""
        hashes = self._hashes[split]
        # Only to measure with is the teacher's first choice needed.
        places = store.missing([hashes[index] for index in indices], top1=split == "holdout")
        absent = [indices[place] for place in places]
        first_of = self._first_places.get(split) or _first_places(hashes, absent)
        return [index for index in absent if first_of[hashes[index]] == index]


def cut(num_rows: int, long: int, short: int) -> list[range]:
    """Cut rows into waves: so many rows in each, and fewer in each of the last ones."""
    middle = max(0, math.ceil(num_rows / long) - _LAST_WAVES) * long
    waves = [range(start, start + long) for start in range(0, middle, long)]
    return [*waves, *(range(start, min(start + short, num_rows)) for start in range(middle, num_rows, short))]


def dealt(sizes: Sequence[int], world: int) -> list[int]:
    """Return the rank of each piece of work: the largest first, each to the rank that has least.

    The loads of two ranks then differ by the size of one piece at most.
    Source: R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969.
    """
    loads = [(0, number) for number in range(world)]
    owners = [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        load, owners[place] = heapq.heappop(loads)
        heapq.heappush(loads, (load + sizes[place], owners[place]))
    return owners


def _first_places(hashes: Sequence[bytes], indices: Sequence[int]) -> dict[bytes, int]:
    return {hashes[index]: index for index in reversed(indices)}
