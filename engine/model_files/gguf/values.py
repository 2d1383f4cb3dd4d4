"""The numbers of a GGUF tensor in transformers' order: some rows are read, dequantised and put in their places.

Only the rows that are asked for are in memory. The arithmetic is the ``gguf`` package's; Q4_K, the most frequent type,
has the same here in fewer passes over the numbers.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engine.model_files.gguf.architectures import Layout
from engine.model_files.gguf.header import StoredTensor, type_name, type_sizes
from engine.model_files.headers import ReadBytes

Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class GgufValues:
    """Reads ranges of one tensor; an :class:`engine.model_files.headers.Decoder`.

    Args:
        stored: the tensor, or one expert's part of it.
        layout: how llama.cpp keeps it.
    """

    stored: StoredTensor
    layout: Layout

    @property
    def name(self) -> str:
        """The type's name."""
        return type_name(self.stored.kind)

    @property
    def step(self) -> int:
        """Numbers that are best asked for at once: whole rows; all of a tensor that is turned."""
        return math.prod(self.stored.shape) if self.layout.turned else self._columns

    @property
    def _columns(self) -> int:
        return self.stored.shape[-1] if len(self.stored.shape) > 1 else 1

    def values(self, read: ReadBytes, first: int, count: int) -> Values:
        """Numbers ``first`` to ``first + count`` of the tensor in transformers' flat order."""
        rows = math.prod(self.stored.shape) // self._columns
        if self.layout.turned:
            return self._rows(read, 0, rows).T.reshape(-1)[first : first + count]
        begin, end = first // self._columns, -(-(first + count) // self._columns)
        found = self._in_order(read, begin, end).reshape(-1)
        found = found[first - begin * self._columns : first - begin * self._columns + count]
        return found - np.float32(self.layout.shift) if self.layout.shift else found

    def _in_order(self, read: ReadBytes, begin: int, end: int) -> Values:
        """Rows of transformers' order."""
        if self.layout.order is None:
            return self._rows(read, begin, end)
        wanted = self.layout.places()[begin:end]
        rising = np.sort(wanted)
        # Rows near each other are read together: every second one of a head, or a whole head.
        borders = [0, *(np.flatnonzero(np.diff(rising) > 2) + 1).tolist(), len(rising)]
        out = np.empty((end - begin, self._columns), dtype=np.float32)
        for start, stop in pairwise(borders):
            low, high = int(rising[start]), int(rising[stop - 1])
            block = self._rows(read, low, high + 1)
            mine = np.flatnonzero((wanted >= low) & (wanted <= high))
            out[mine] = block[wanted[mine] - low]
        return out

    def _rows(self, read: ReadBytes, begin: int, end: int) -> Values:
        """Rows as stored in the file: float32 [end - begin, columns]."""
        elements, block = type_sizes(self.stored.kind)
        row_bytes = self._columns // elements * block
        data = read(self.stored.file, self.stored.offset + begin * row_bytes, (end - begin) * row_bytes)
        return dequantize(data, self.stored.kind).reshape(end - begin, self._columns)


@functools.cache
def can_dequantize(kind: int) -> bool:
    """Return whether there is arithmetic for a type."""
    try:
        dequantize(np.zeros(type_sizes(kind)[1], dtype=np.uint8), kind)
    except (NotImplementedError, ValueError, KeyError, TypeError):
        return False
    return True


def dequantize(data: NDArray[np.uint8], kind: int) -> Values:
    """Whole blocks of a type as numbers.

    Args:
        data: uint8 [bytes], any number of blocks.
        kind: number of the type.

    Returns:
        float32, flat.

    Raises:
        NotImplementedError: the ``gguf`` package cannot dequantise this type.
    """
    import gguf

    type_ = gguf.GGMLQuantizationType(kind)
    if type_.name == "F64":
        return data.view("<f8").astype(np.float32)
    with np.errstate(all="ignore"):  # a damaged scale becomes NaN, which the use of the weights shows
        if type_.name == "Q4_K":
            return _q4_k(data)
        # As one row: the package works on 16 rows at a time, and rows of one block each take four times as long.
        found: Values = gguf.quants.dequantize(data.reshape(1, -1), type_)
    return np.asarray(found, dtype=np.float32).reshape(-1)


def _q4_k(data: NDArray[np.uint8]) -> Values:
    """Blocks of Q4_K: two float16, twelve bytes of eight scales and eight offsets, and 128 bytes of half bytes.

    Takes half of the package's time, and gives the same numbers bit for bit. Source: ggml, ``dequantize_row_q4_K``.
    """
    blocks = data.reshape(-1, 144)
    both = blocks[:, :4].copy().view(np.float16).astype(np.float32)
    first, second, third = (blocks[:, start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 2) & 48)], axis=1)
    offsets = np.concatenate([second & 63, (third >> 4) | ((second >> 2) & 48)], axis=1)
    halves = blocks[:, 16:].reshape(-1, 4, 32)
    values = np.empty((len(blocks), 4, 2, 32), dtype=np.float32)
    values[:, :, 0] = halves & 15
    values[:, :, 1] = halves >> 4
    groups = values.reshape(-1, 8, 32)
    groups *= (both[:, :1] * scales)[..., None]
    groups -= (both[:, 1:] * offsets)[..., None]
    return values.reshape(-1)
