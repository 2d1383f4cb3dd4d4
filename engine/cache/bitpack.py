"""A record's ids in few bits: of a vocabulary of 152,000 words 12 ids in 25 bytes, and which of them are heads.

The ids of a record are a set: once they are sorted, only their distances have to be told. The code is that of Elias
(1974, https://doi.org/10.1145/321812.321820) and Fano (1971): the low bits of each id as they are, the high bits
in unary, as the places of k ones among ``k + (V - 1 >> low_bits)`` bits. A record takes the same number of bytes
whatever ids it has, so any record can be read without those before it. Plain ids of 18 bits, and a byte that counts the
heads, would take 28.

::

    | k bits: is it a head? | k + (V - 1 >> low_bits) bits: high parts | k x low_bits bits: low parts |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_WINDOW_BYTES = 4  # a low part and the up to 7 bits before it lie within so many bytes: low parts of up to 25 bits
_LARGEST_LOW_BITS = 8 * _WINDOW_BYTES - 7


@dataclass(frozen=True)
class IdCode:
    """How the ids of a record are laid out; see :func:`id_code`.

    Attributes:
        record_size: k, ids in a record.
        vocab_size: V; every id is below it.
        low_bits: bits of each id that are stored as they are.
    """

    record_size: int
    vocab_size: int
    low_bits: int

    @property
    def flag_bits(self) -> int:
        """Bits before the low parts: which ids are heads, and the high parts."""
        return 2 * self.record_size + ((self.vocab_size - 1) >> self.low_bits)

    @property
    def num_bytes(self) -> int:
        """Bytes of one record's ids."""
        return -(-(self.flag_bits + self.record_size * self.low_bits) // 8)


@lru_cache
def id_code(record_size: int, vocab_size: int) -> IdCode:
    """The shortest code for k ids below V."""
    widths = range(min((vocab_size - 1).bit_length(), _LARGEST_LOW_BITS) + 1)
    return min((IdCode(record_size, vocab_size, width) for width in widths), key=lambda code: code.num_bytes)


def pack_ids(ids: NDArray[np.int32], is_head: NDArray[np.bool_], code: IdCode) -> NDArray[np.uint8]:
    """Pack ids that rise within each row.

    Args:
        ids: [N, k], below ``code.vocab_size``.
        is_head: [N, k].
        code: from :func:`id_code`.

    Returns:
        [N, code.num_bytes].
    """
    num, size = ids.shape
    if num == 0:
        return np.empty((0, code.num_bytes), np.uint8)
    flags = np.zeros((num, code.flag_bits), np.uint8)
    flags[:, :size] = is_head
    np.put_along_axis(flags, size + (ids >> code.low_bits) + np.arange(size), 1, axis=1)
    packed = np.zeros((num, code.num_bytes + _WINDOW_BYTES), np.uint8)
    packed[:, : -(-code.flag_bits // 8)] = np.packbits(flags, axis=1, bitorder="little")
    low = (ids & ((1 << code.low_bits) - 1)).astype(np.uint32)
    for place, (first_byte, shift) in enumerate(_windows(code)):
        window = np.ndarray(num, "<u4", packed, first_byte, packed.strides[:1])
        window |= low[:, place] << shift
    return packed[:, : code.num_bytes]


def unpack_ids(packed: NDArray[np.uint8], code: IdCode) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The ids and the marks that :func:`pack_ids` packed, [N, k] each.

    Raises:
        ValueError: a row was not made by this code.
    """
    num, size = len(packed), code.record_size
    flags = np.unpackbits(packed[:, : -(-code.flag_bits // 8)], axis=1, bitorder="little")
    ones = np.flatnonzero(flags.view(np.bool_)[:, size : code.flag_bits])
    # Without the start of the row and the ones before, a one's place is its id's high part.
    places = ones.reshape(num, size)
    high = places - (np.arange(num) * (code.flag_bits - size))[:, None] - np.arange(size)
    ids = (high << code.low_bits).astype(np.int32)
    padded = np.zeros(packed.size + code.num_bytes + _WINDOW_BYTES, np.uint8)
    padded[: packed.size] = packed.reshape(-1)
    mask = np.uint32((1 << code.low_bits) - 1)
    for place, (first_byte, shift) in enumerate(_windows(code)):
        window = np.ndarray(num, "<u4", padded, first_byte, (code.num_bytes,))
        ids[:, place] |= ((window >> shift) & mask).view(np.int32)
    return ids, flags[:, :size].astype(np.bool_)


def _windows(code: IdCode) -> list[tuple[int, np.uint32]]:
    """Where each low part lies: the first of its four bytes, and the bits before it in there."""
    bits = [code.flag_bits + place * code.low_bits for place in range(code.record_size)]
    return [(bit // 8, np.uint32(bit % 8)) for bit in bits]
