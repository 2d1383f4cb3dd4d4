"""Counter-based random numbers: a record does not depend on the order of scoring or on restarts.

A number is a hash of (seed, row, position, stream), by the finaliser of SplitMix64 (Steele, Lea and Flood 2014,
https://doi.org/10.1145/2660193.2660195, figure 16) applied after each part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

SAMPLING = 0
"""The stream of the tail's draw, one number for each position."""

ROUNDING_TAIL = 1
ROUNDING_LABEL = 2
ROUNDING_ENTROPY = 3
"""Streams for rounding, one number for each position."""

ROUNDING_HEADS = 8
"""The first of the streams for rounding heads; each head of a position has one of its own."""


def uniforms(
    seed: int, row_keys: NDArray[np.uint64], positions: NDArray[np.int64], stream: int | NDArray[np.int64]
) -> NDArray[np.float64]:
    """One number in [0, 1) for each position.

    Args:
        seed: of the run; any integer of 64 bits.
        row_keys: [N], the first 8 bytes of each row's hash, little-endian.
        positions: [N], places in the row.
        stream: which of several independent numbers; one for all, or [N].
    """
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF) + _GOLDEN)
        state = _mix(state ^ row_keys)
        state = _mix(state + _GOLDEN * (positions.astype(np.uint64) + np.uint64(1)))
        state = _mix(state + _GOLDEN * np.asarray(stream + 1, np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def row_key(row_hash: bytes) -> int:
    """Return the counter value of each row."""
    return int.from_bytes(row_hash[:8], "little")


def _mix(value: np.uint64 | NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = np.asarray(value, np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
