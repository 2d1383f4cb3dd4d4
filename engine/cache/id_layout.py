"""A shard's order of the vocabulary, which encodes frequent ids in few bits.

Each shard has its own order of the ids: first those that are most frequent in its records, then all others by
increasing id. The order is divided into buckets of 2^w places. An id is encoded by its bucket (in unary, as the ids of
a record are sorted) and, in w bits, its place in the bucket. Buckets of doubling size, 8, 16, 32, …, fit text, where
few ids are frequent; if all ids are equally frequent, buckets of one size are the code of Elias and Fano for sets. The
layout with the fewest bytes is chosen; the list of frequent ids is stored once per shard, in some 2,000 bytes.

The idea is that of Golomb's and Elias' codes for integers (1975, https://doi.org/10.1109/TIT.1975.1055349), with a
measured order instead of magnitude, as in compressors of inverted indexes.

Knows nothing of records and files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from engine.cache.bits import LARGEST_WIDTH, pack_set, set_bytes, unpack_set

_FIRST_WIDTHS = (1, 3, 5)  # of buckets that grow
_TIMES = (1, 2)  # buckets of each width
_FEWEST_COMMON = 30  # fewer are never the best, and each number costs a pass over all ids
_HEAD_BYTES = 12


@dataclass(frozen=True, eq=False)
class IdLayout:
    """An order of the vocabulary and its division into buckets.

    Attributes:
        vocab_size: V.
        widths: w of each bucket; the last one may reach past the vocabulary.
        common: int64 [M], the ids that fill the first buckets, rising within each.
    """

    vocab_size: int
    widths: tuple[int, ...]
    common: NDArray[np.int64]

    @cached_property
    def widths_of(self) -> NDArray[np.int64]:
        """``widths`` as an array."""
        return np.array(self.widths, np.int64)

    @cached_property
    def firsts(self) -> NDArray[np.int64]:
        """The first place of each bucket."""
        return np.array(_starts(self.widths)[:-1], np.int64)

    def places(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """The place of each id in the order."""
        is_other = np.ones(self.vocab_size, np.bool_)
        is_other[self.common] = False
        place = len(self.common) - 1 + is_other.cumsum()
        place[self.common] = np.arange(len(self.common))
        found: NDArray[np.int64] = place[ids]
        return found

    def ids(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The id at each place.

        Raises:
            ValueError: there is no such place.
        """
        if places.size and int(places.max()) >= self.vocab_size:
            raise ValueError("an id that is not in the vocabulary")
        others = places - len(self.common)
        # The n-th of the others has as many common ids below it as have at most n others below them.
        others += np.searchsorted(self._others_below, others, side="right")
        if not len(self.common):
            return others
        return np.where(places < len(self.common), self.common[np.minimum(places, len(self.common) - 1)], others)

    def to_bytes(self) -> NDArray[np.uint8]:
        """The vocabulary's size, how many buckets, how many of them are common, each one's width, the common ids."""
        starts = _starts(self.widths)
        num_common = starts.index(len(self.common))
        head = np.array([self.vocab_size, len(self.widths), num_common], "<u4").view(np.uint8)
        sets = [
            pack_set(self.common[first:last], self.vocab_size) for first, last in pairwise(starts[: num_common + 1])
        ]
        return np.concatenate([head, np.array(self.widths, np.uint8), *sets])

    @cached_property
    def _others_below(self) -> NDArray[np.int64]:
        """For each common id, by rising id, how many ids below it are not common."""
        return np.sort(self.common) - np.arange(len(self.common))


@lru_cache(maxsize=64)  # some 70 KB each; to make one again takes a fifth of a millisecond
def layout_from_bytes(data: bytes) -> IdLayout:
    """Return the layout that :meth:`IdLayout.to_bytes` wrote.

    Raises:
        ValueError: the bytes are not a layout.
    """
    vocab_size, num_buckets, num_common = np.frombuffer(data, "<u4", 3).tolist()
    raw = np.frombuffer(data, np.uint8)
    at = _HEAD_BYTES + num_buckets
    widths = tuple(raw[_HEAD_BYTES:at].tolist())
    if not widths or max(widths) > LARGEST_WIDTH or num_common > len(widths):
        raise ValueError("no widths of buckets")
    common = [np.empty(0, np.int64)]
    for first, last in pairwise(_starts(widths)[: num_common + 1]):
        size = set_bytes(last - first, vocab_size)
        common.append(unpack_set(raw[at : at + size], last - first, vocab_size))
        at += size
    if at != len(raw):
        raise ValueError("extra bytes after the layout")
    return IdLayout(vocab_size, widths, np.concatenate(common))


def fitting_layout(ids: NDArray[np.integer], vocab_size: int) -> IdLayout:
    """Return the layout that takes the fewest bytes for some records.

    Args:
        ids: [N, k].
        vocab_size: V; all ids are below it.
    """
    present, counts = np.unique(ids, return_counts=True)
    often = np.lexsort((present, -counts))
    found = _candidates(present, counts, often, vocab_size, *ids.shape)
    _, widths, num_common = min(found, key=lambda candidate: candidate[0])
    common = present[often[:num_common]].astype(np.int64)
    for first, last in pairwise(_starts(widths)):
        common[first:last].sort()
    return IdLayout(vocab_size, widths, common)


def flag_bits(record_size: int, num_buckets: int) -> int:
    """Return the bits that mark heads (one per id) plus the bits of the buckets (in unary), for k ids."""
    return 2 * record_size + num_buckets - 1


def uniform_widths(record_size: int, vocab_size: int) -> tuple[int, ...]:
    """Return equal buckets of the best size for k uniformly distributed ids."""
    bits = range((vocab_size - 1).bit_length() + 1)
    low = min(bits, key=lambda low: ((vocab_size - 1) >> low) + record_size * low)
    return (low,) * (((vocab_size - 1) >> low) + 1)


def growing_widths(first: int, times: int, vocab_size: int) -> tuple[int, ...]:
    """Return buckets of doubling size that hold the vocabulary."""
    widths: list[int] = []
    while sum(2**width for width in widths) < vocab_size:
        widths.append(first + len(widths) // times)
    return tuple(widths)


def _candidates(
    present: NDArray[np.integer],
    counts: NDArray[np.int64],
    often: NDArray[np.int64],
    vocab_size: int,
    num_records: int,
    record_size: int,
) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """Yield bits, widths and number of common ids of each candidate layout."""
    uniform = uniform_widths(record_size, vocab_size)
    bits = flag_bits(record_size, len(uniform)) + record_size * uniform[0]
    yield num_records * bits, uniform, 0
    named_to = np.concatenate([[0], counts[often].cumsum()])  # how often the first n of them are named
    for first in _FIRST_WIDTHS:
        for times in _TIMES:
            widths = growing_widths(first, times, vocab_size)
            starts = _starts(widths)
            common_bits = num_records * flag_bits(record_size, len(widths))
            for num_common, (width, end) in zip(starts, [*zip(widths, starts[1:], strict=True), (0, 0)], strict=True):
                if num_common == 0 or num_common >= _FEWEST_COMMON:
                    rest = _rest_bits(present, counts, often[:num_common], num_common, widths, starts)
                    yield common_bits + rest, widths, num_common
                if end > len(present):
                    break
                common_bits += width * int(named_to[end] - named_to[num_common])
                common_bits += 8 * set_bytes(end - num_common, vocab_size)


def _rest_bits(
    present: NDArray[np.integer],
    counts: NDArray[np.int64],
    common: NDArray[np.int64],
    num_common: int,
    widths: tuple[int, ...],
    starts: list[int],
) -> int:
    """Return the bits of the places of all ids except the common ones."""
    is_other = np.ones(len(present), np.bool_)
    is_other[common] = False
    common_below = (~is_other).cumsum()[is_other]
    places = num_common + present[is_other] - common_below
    bucket = np.searchsorted(starts, places, side="right") - 1
    return int((np.array(widths)[bucket] * counts[is_other]).sum())


def _starts(widths: tuple[int, ...]) -> list[int]:
    return [0, *accumulate(1 << width for width in widths)]
