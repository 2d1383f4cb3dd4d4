"""Rows that grow by one token at a time, with a key-value cache for the earlier tokens.

It uses the model's own cache of any kind. A model without a cache, or whose cache cannot be continued, runs the whole
row each time. Knows nothing of sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.machine.out_of_memory import is_out_of_memory
from engine.models.core import hidden_states_and_cache

# A cut student may lack the only kind of layer that the model's cache can count with (Recurrent Gemma's attention).
_NO_CACHE = (RuntimeError, ValueError, IndexError, KeyError, AttributeError, TypeError)


class GrowingRows:
    """Last hidden states of rows that are asked for again with one token more.

    Args:
        model: any causal language model, in evaluation mode.
        without_cache: hidden states [rows, length or more, hidden] of whole rows, for models that have no cache.
    """

    def __init__(self, model: PreTrainedModel, without_cache: Callable[[Tensor], Tensor]) -> None:
        self._model = model
        self._without_cache = without_cache
        self._has_cache = True
        self._cache: Any = None
        self._seen: Tensor | None = None

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Hidden states [rows, hidden] at the last of ids [rows, length], on the model's device."""
        ids = ids.to(self._model.device)
        if self._has_cache:
            is_next = self._seen is not None and torch.equal(self._seen, ids[:, :-1])
            given = ids[:, -1:] if is_next else ids
            try:
                found = hidden_states_and_cache(self._model, given, self._cache if is_next else None)
            except _NO_CACHE as error:
                if is_out_of_memory(error):
                    raise
                self._has_cache = False
                return self._without_cache(ids)[:, ids.shape[1] - 1]
            hidden_states, self._cache = found
            self._seen = ids
            self._has_cache = self._cache is not None
            if self._has_cache or not is_next:
                return hidden_states[:, -1]
        return self._without_cache(ids)[:, ids.shape[1] - 1]
