"""Comparing tensors so that NaN never passes as equal.

``max(0, nan)`` is 0 and ``nan > tolerance`` is False, so the usual ways of comparing let a forward pass that broke
entirely look like a perfect match.
"""

from __future__ import annotations

import torch
from torch import Tensor


def assert_same_numbers(ours: Tensor, theirs: Tensor, *, tolerance: float = 0.0, what: str = "values") -> None:
    """Both finite, of one shape, and nowhere further apart than ``tolerance`` (0: equal to the last bit)."""
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)} against {tuple(theirs.shape)}"
    assert torch.isfinite(theirs).all(), f"{what}: the reference itself is not finite"
    assert torch.isfinite(ours).all(), f"{what}: {int((~torch.isfinite(ours)).sum())} values are NaN or infinite"
    worst = (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0
    assert worst <= tolerance, f"{what}: {worst:.3g} apart, {tolerance:.3g} allowed"
