"""Which tensors of a student are trained; these alone have gradients, moments and a place in the checkpoints.

:class:`WholeModel` trains everything. :class:`engine.student.adapter.LowRankAdapter` trains small matrices beside a
frozen model. Knows nothing of losses, optimizers or files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn


class Trainable(Protocol):
    """The trained part of a student."""

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The trained parameters by name; a tied one comes once."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold to bring the student back, by name; the tensors, not copies."""


class WholeModel:
    """All parameters are trained; checkpoints hold the buffers too."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """See :class:`Trainable`."""
        return self._model.named_parameters()

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers, without duplicates: a tied lm_head is the embedding."""
        found: dict[str, Tensor] = {}
        seen: set[tuple[int, torch.Size]] = set()
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            key = (tensor.data_ptr(), tensor.shape)
            if key not in seen or not tensor.numel():
                seen.add(key)
                found[name] = tensor.detach()
        return found
