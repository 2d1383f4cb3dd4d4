"""Bit-packed ids of rows' records, as places in a shard's order (id_layout.py), with marks for heads.

::

    | row: | record: k bits, is it a head? | its k buckets in unary | record ... | places in the buckets, all records' |

A row begins at a byte boundary, so that it can be read alone. The buckets of a record are the positions of k ones in
``k + buckets - 1`` bits, as its ids are sorted. They take the same number of bits in each record, so their position in
a row is known in advance, and they determine the widths of the places that follow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.cache.bits import read_bits, write_bits
from engine.cache.id_layout import IdLayout, flag_bits

_WORD = 32  # bits that are read and written at a time


def pack_ids(
    in_order: NDArray[np.int64], is_head: NDArray[np.bool_], layout: IdLayout, row_records: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pack the records of some rows.

    Args:
        in_order: [N, k], places in the layout's order, rising within each record.
        is_head: [N, k].
        layout: the order.
        row_records: [rows], how many of the N records are of each row.

    Returns:
        The bytes, and the number of bytes of each row.
    """
    num, size = in_order.shape
    num_flags = flag_bits(size, len(layout.widths))
    bucket = np.searchsorted(layout.firsts, in_order, side="right") - 1
    flags = np.zeros((num, _WORD * -(-num_flags // _WORD)), np.uint8)
    flags[:, :size] = is_head
    np.put_along_axis(flags, size + bucket + np.arange(size), 1, axis=1)
    words = np.packbits(flags, axis=1, bitorder="little").view("<u4").astype(np.int64)
    widths = layout.widths_of[bucket]
    row_bytes = -(-(_sums(widths.sum(1), row_records) + num_flags * row_records) // 8)
    word_widths, word_starts = _words_of_flags(num_flags, row_records, row_bytes)
    starts = _place_starts(widths, num_flags, row_records, row_bytes)
    written = write_bits(
        np.concatenate([words.ravel(), (in_order - layout.firsts[bucket]).ravel()]),
        np.concatenate([word_widths.ravel(), widths.ravel()]),
        np.concatenate([word_starts.ravel(), starts.ravel()]),
    )
    packed = np.zeros(row_bytes.sum(), np.uint8)
    packed[: len(written)] = written
    return packed, row_bytes


def unpack_ids(
    packed: NDArray[np.uint8],
    layout: IdLayout,
    row_records: NDArray[np.int64],
    row_bytes: NDArray[np.int64],
    record_size: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the places and the marks that :func:`pack_ids` packed, [N, k] each; only the layout's widths are used.

    Raises:
        ValueError: the bytes are not packed rows.
    """
    num, num_flags = int(row_records.sum()), flag_bits(record_size, len(layout.widths))
    words = read_bits(packed, *_words_of_flags(num_flags, row_records, row_bytes)).astype("<u4")
    flags = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").view(np.bool_)
    ones = np.flatnonzero(flags[:, record_size:num_flags]).reshape(num, record_size)
    # Without the start of the record and the ones before, a one's place is its id's bucket.
    bucket = ones - (np.arange(num) * (num_flags - record_size))[:, None] - np.arange(record_size)
    if bucket.size and not 0 <= int(bucket.min()) <= int(bucket.max()) < len(layout.widths):
        raise ValueError("a record with a wrong number of ids")
    widths = layout.widths_of[bucket]
    places = read_bits(packed, widths, _place_starts(widths, num_flags, row_records, row_bytes))
    return layout.firsts[bucket] + places, flags[:, :record_size]


def _words_of_flags(
    num_flags: int, row_records: NDArray[np.int64], row_bytes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Widths and starts of the words that the flags of each record are cut into, [N, words] each."""
    begins = _before(8 * row_bytes) - num_flags * _before(row_records)
    starts = np.repeat(begins, row_records) + num_flags * np.arange(row_records.sum())
    offsets = np.arange(0, num_flags, _WORD)
    word_starts: NDArray[np.int64] = starts[:, None] + offsets
    return np.broadcast_to(np.minimum(_WORD, num_flags - offsets), word_starts.shape), word_starts


def _place_starts(
    widths: NDArray[np.int64], num_flags: int, row_records: NDArray[np.int64], row_bytes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the bit at which each place begins, [N, k]: after all flags of its row."""
    within = _before(widths.ravel()).reshape(widths.shape)
    begins = _before(8 * row_bytes) + num_flags * row_records - _before(_sums(widths.sum(1), row_records))
    starts: NDArray[np.int64] = within + np.repeat(begins, row_records)[:, None]
    return starts


def _before(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the start of each of several contiguous items."""
    before: NDArray[np.int64] = sizes.cumsum() - sizes
    return before


def _sums(values: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sums of contiguous groups of values with the given sizes; a group may be empty."""
    to = np.concatenate([[0], values.cumsum()])
    ends = counts.cumsum()
    return to[ends] - to[ends - counts]
