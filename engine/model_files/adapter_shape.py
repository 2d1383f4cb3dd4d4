"""The settings of a low-rank adapter; knows nothing of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterShape:
    """Which adapter.

    Attributes:
        rank: columns of B and rows of A.
        alpha: the product is multiplied by alpha / rank.
        targets: names of linear layers, or the ends of their paths; empty for all of the decoder.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()


def ends_with(name: str, targets: Sequence[str]) -> bool:
    """Whether a layer's path is one of the targets, or ends with one of them, as peft reads its target modules."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def is_slim(rows: int, columns: int) -> bool:
    """Whether a linear layer is a gate or a router rather than a projection: a few numbers for each token.

    It gets an adapter only where it is named: the adapter would be larger than the layer, and no adapter of the model
    could have a higher rank than the layer has outputs (1 for the gate of Qwen2-MoE's shared expert).
    """
    least, most = sorted((rows, columns))
    return least < 8 or (least < 64 and 32 * least < most)
