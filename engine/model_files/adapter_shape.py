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
