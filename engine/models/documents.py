"""Unpacking of rows: each document becomes a batch row, together with others of similar length.

A document is therefore computed separately from its neighbours in the row, and models need no support for packed rows:
real tokens of a causal model do not attend to padding on the right.

Knows nothing of the use of the documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_FINEST_STEP, _STEPS_AN_OCTAVE = 8, 8


@dataclass(frozen=True)
class Documents:
    """Positions of the documents in padded rows, row after row.

    Attributes:
        rows: int64 [documents], the row of each.
        starts: int64 [documents], the place of its first token in that row.
        lengths: int64 [documents].
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def keys(self, tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return each document's random key: 8 bytes of the blake2b of its tokens (int32), [documents].

        Args:
            tokens: [rows, longest], of the rows that these are documents of.
        """
        keys = [
            blake2b(tokens[row, start : start + length].astype("<i4").tobytes(), digest_size=8).digest()
            for row, start, length in zip(self.rows, self.starts, self.lengths, strict=True)
        ]
        return np.frombuffer(b"".join(keys), "<u8").astype(np.uint64)

    def places(
        self, chosen: NDArray[np.int64], length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Return the positions of some documents' tokens, one document per batch row.

        Returns:
            Row [chosen, 1] and column [chosen, length] of each token, and bool [chosen, length] whether it is a token:
            past a document's end, the position of its first token is padding that no real token attends to.
        """
        starts, steps = self.starts[chosen, None], np.arange(length)
        is_real = steps < self.lengths[chosen, None]
        return self.rows[chosen, None], np.where(is_real, starts + steps, starts), is_real


def find_documents(begins: NDArray[np.bool_], lengths: NDArray[np.int64]) -> Documents:
    """The documents of some rows.

    Args:
        begins: [rows, longest], True where a document begins.
        lengths: int64 [rows], tokens without padding.
    """
    rows, starts = np.nonzero(begins)
    is_last = np.append(rows[1:] != rows[:-1], True)[: len(rows)]
    ends = np.where(is_last, lengths[rows], np.append(starts[1:], 0)[: len(starts)])
    return Documents(rows, starts, ends - starts)


def batches_of(
    lengths: NDArray[np.int64], *, most_tokens: int, longest: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Batches of documents, the longest first, padded together.

    Args:
        lengths: int64 [documents].
        most_tokens: in a batch, padding included; at least one document is in each.
        longest: most tokens in a document; none is padded beyond it.

    Yields:
        Which documents, and the length that they are padded to. There are eight such lengths from one power of two to
        the next: a product in half precision compiles a kernel for each shape that it meets, and keeps it.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        length = min(longest, _rounded_up(int(lengths[order[start]])))
        end = start + max(1, most_tokens // length)
        yield order[start:end], length
        start = end


def _rounded_up(length: int) -> int:
    step = max(_FINEST_STEP, (1 << length.bit_length()) // (2 * _STEPS_AN_OCTAVE))
    return -(-length // step) * step
