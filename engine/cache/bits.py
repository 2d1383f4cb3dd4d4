"""Bit-packed integers of any width, least significant bit first, and compact sets of integers.

A set uses the code of Elias (1974, https://doi.org/10.1145/321812.321820) and Fano (1971): the numbers are sorted, the
low bits of each are stored as they are, the high bits in unary, as the positions of m ones in ``m + (V - 1 >> low)``
bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST_WIDTH = 32
"""Bits of a number, at most."""

_WORD = 32
_WINDOW_BYTES = 8  # a number and the up to 7 bits before it fit in so many bytes


def write_bits(values: NDArray[np.int64], widths: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Write numbers at given bit positions; bits between them are 0.

    Args:
        values: [n], each below ``2 ** width``.
        widths: [n], bits of each, at most LARGEST_WIDTH.
        starts: [n], the bit that each begins at; no two share a bit.

    Returns:
        The smallest number of bytes that holds the last bit.
    """
    if not len(values):
        return np.empty(0, np.uint8)
    num_bits = int((starts + widths).max())
    num_words = num_bits // _WORD + 2
    word, shift = np.divmod(starts, _WORD)
    shifted = values.astype(np.uint64) << shift.astype(np.uint64)
    # Numbers that share a word share no bit, so a sum is their union; below 2^32 float64 is exact.
    words = np.bincount(word, (shifted & np.uint64(0xFFFF_FFFF)).astype(np.float64), num_words)
    words += np.bincount(word + 1, (shifted >> np.uint64(_WORD)).astype(np.float64), num_words)
    return words.astype("<u4").view(np.uint8)[: -(-num_bits // 8)]


def read_bits(data: NDArray[np.uint8], widths: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers that :func:`write_bits` wrote, in the shape of ``starts``.

    Raises:
        ValueError: a number ends outside of the data.
    """
    if starts.size and (int(starts.min()) < 0 or int((starts + widths).max()) > 8 * len(data)):
        raise ValueError("numbers outside of the data")
    padded = np.zeros(len(data) + _WINDOW_BYTES, np.uint8)
    padded[: len(data)] = data
    windows: NDArray[np.uint64] = np.ndarray((len(data) + 1,), "<u8", padded, strides=(1,))
    found = windows[starts >> 3] >> (starts & 7).astype(np.uint64)
    found &= (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
    return found.view(np.int64)


def set_bytes(size: int, below: int) -> int:
    """Return the bytes of a set of this many different numbers below ``below``."""
    low = _low_bits(size, below)
    return -(-(size + ((below - 1) >> low) + size * low) // 8)


def pack_set(values: NDArray[np.int64], below: int) -> NDArray[np.uint8]:
    """Pack increasing numbers into ``set_bytes`` bytes.

    Args:
        values: [m], all different.
        below: a number above all of them.
    """
    size, low = len(values), _low_bits(len(values), below)
    num_high = size + ((below - 1) >> low)
    ranks = np.arange(size)
    starts = np.concatenate([(values >> low) + ranks, num_high + low * ranks])
    bits = np.concatenate([np.ones(size, np.int64), values & ((1 << low) - 1)])
    packed = np.zeros(set_bytes(size, below), np.uint8)
    written = write_bits(bits, np.repeat(np.array([1, low]), size), starts)
    packed[: len(written)] = written
    return packed


def unpack_set(packed: NDArray[np.uint8], size: int, below: int) -> NDArray[np.int64]:
    """Return the numbers that :func:`pack_set` packed, in increasing order.

    Raises:
        ValueError: the bytes are not a packed set.
    """
    if len(packed) != set_bytes(size, below):
        raise ValueError("a truncated set")
    low = _low_bits(size, below)
    num_high = size + ((below - 1) >> low)
    ranks = np.arange(size)
    ones = np.flatnonzero(np.unpackbits(packed, bitorder="little")[:num_high])
    if len(ones) != size:
        raise ValueError(f"{len(ones)} numbers in a set of {size}")
    return ((ones - ranks) << low) | read_bits(packed, np.full(size, low), num_high + low * ranks)


def _low_bits(size: int, below: int) -> int:
    return max(0, (below // max(1, size)).bit_length() - 1)
