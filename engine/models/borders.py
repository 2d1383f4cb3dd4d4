"""Separation of documents in one row: positions restart, and attention is masked at the begin of each document.

Every mask that transformers makes goes through one table of functions, one for each way to compute attention; while
:func:`cut` is open, these also hide what belongs to another document. The library does that by itself where it finds
positions that restart, but not everywhere: OPT gives positions and no mask for it, GPT-OSS, BLOOM and MPT do not pass
positions on to the mask (transformers 5.24). Layers that carry a state from token to token, as Mamba's, and
convolutions have no mask; :mod:`engine.models.packed` measures whether a model is cut.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    packed_sequence_mask_function,
)

_WAYS = ("sdpa", "eager")


def positions_in(documents: Tensor) -> Tensor:
    """The place of each token in its document.

    Args:
        documents: int64 [batch, length], the number of each token's document in its row, rising from 0.

    Returns:
        int64 [batch, length].
    """
    places = torch.arange(documents.shape[1], device=documents.device)
    begins = torch.diff(documents, dim=1, prepend=documents[:, :1] - 1) != 0
    return places - (places * begins).cummax(dim=1).values


def takes_positions(module: nn.Module) -> bool:
    """Whether a forward takes the positions of its tokens; other models make them from the mask, or have none."""
    return "position_ids" in inspect.signature(type(module).forward).parameters


@contextmanager
def cut(documents: Tensor | Callable[[], Tensor | None], *, as_numbers: bool | None = None) -> Iterator[None]:
    """While this is open, the masks that transformers makes are cut between documents.

    Masks are made before the first layer and handed to all of them, so a layer that is computed again in the backward
    pass has the same one.

    Args:
        documents: int64 [batch, length], as for :func:`positions_in`, on the device that computes; or a function that
            gives those of the rows for which a mask is made (None where each holds one document).
        as_numbers: whether masks are numbers to add instead of bits; where gradients are on when not given.
    """
    before = {way: ALL_MASK_ATTENTION_FUNCTIONS[way] for way in _WAYS}
    for way, function in before.items():
        ALL_MASK_ATTENTION_FUNCTIONS[way] = _cutting(function, documents, as_numbers)
    try:
        yield
    finally:
        for way, function in before.items():
            ALL_MASK_ATTENTION_FUNCTIONS[way] = function


def _cutting(
    function: Callable[..., Any], documents: Tensor | Callable[[], Tensor | None], as_numbers: bool | None
) -> Callable[..., Any]:
    def cutting(*args: Any, mask_function: Callable[..., Any] = causal_mask_function, **kwargs: Any) -> Any:
        found = documents if isinstance(documents, Tensor) else documents()
        if found is None:
            return function(*args, mask_function=mask_function, **kwargs)
        in_one_document = packed_sequence_mask_function(found)
        kwargs["allow_is_causal_skip"] = False  # a plain causal mask is not made at all
        mask = function(*args, mask_function=and_masks(mask_function, in_one_document), **kwargs)
        is_added = torch.is_grad_enabled() if as_numbers is None else as_numbers
        return _added(mask, kwargs.get("dtype", torch.float32)) if is_added else mask

    return cutting


def _added(mask: Any, dtype: torch.dtype) -> Any:
    """The mask as numbers to add: of a mask of bits each layer would make these for itself, and keep them."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        return mask
    if torch.is_autocast_enabled(mask.device.type):
        dtype = torch.get_autocast_dtype(mask.device.type)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
