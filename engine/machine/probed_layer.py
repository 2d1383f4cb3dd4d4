"""Sizes of the layer that the probe times, and its work beside the products; no torch here, for the planner uses it."""

from __future__ import annotations

ROWS, LENGTH, HEAD_DIM = 4, 128, 64
"""Of the layer's input, [ROWS, LENGTH, hidden]."""
WIDTHS = {"small": 256, "large": 1024}
"""Hidden sizes that are measured."""
OPERATIONS_PER_LAYER = 45
"""Operations that a layer starts in a forward pass."""

UNDISTURBED_SHARE = 0.75
"""Of the processor time of all threads, what products get on a quiet machine; with one other busy program per core they
get half."""

# Numbers that the elementwise operations of a layer read and write for each number of a hidden state, and for each of
# the inner part.
_OVER_HIDDEN, _OVER_INNER = 24, 8


def inner_size(hidden: int) -> int:
    """Width of the inner part: 8/3 of the hidden size, as in Llama."""
    return hidden * 8 // 3 // 64 * 64


def products(hidden: int) -> float:
    """Floating-point operations of a forward pass for a token: products with weights, and attention."""
    return 2.0 * (4 * hidden**2 + 3 * hidden * inner_size(hidden)) + 2.0 * LENGTH * hidden


def numbers_moved(hidden: int, inner: int) -> int:
    """Numbers that a layer of any widths reads and writes for a token, beside its products."""
    return _OVER_HIDDEN * hidden + _OVER_INNER * inner
