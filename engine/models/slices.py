"""Embedding and head without their matrices in memory: the rows in use, and slices of the vocabulary.

The two largest matrices of a model are needed a few rows at a time (embedding) or once a wave (head). Both are replaced
in place on the model's own modules, so that whatever the model does around them (scaling an embedding, a bias, a
softcap on the logits) stays its own code.

Matrix products of different widths round differently, so slices have fixed bounds that depend on the matrix's shape
alone, and a resident head is computed in the same slices: then resident and streamed logits are equal to the last bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.machine.products import linear
from engine.machine.torch_device import kind_of, sums_halves_in_float32

_ROW_STEP = 256


def slice_bounds(rows: int, columns: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Cut a head of [rows, columns] into slices: (first row, end row) of each."""
    step = max(_ROW_STEP, kind_of(device).slice_bytes // (4 * columns) // _ROW_STEP * _ROW_STEP)
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


class RowSource(Protocol):
    """Where a matrix's rows come from."""

    def rows(self, first: int, end: int) -> Tensor:
        """Rows first to end of the matrix, [end - first, columns]; valid until the next call."""


class ResidentRows:
    """Rows of a matrix that is in memory."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def rows(self, first: int, end: int) -> Tensor:
        """A view of the rows."""
        return self._weight[first:end]


def slice_head(head: nn.Linear, source: RowSource, *, device: torch.device) -> None:
    """Make a head compute its logits slice by slice of the vocabulary; changes ``head.forward``.

    Args:
        head: its weight's shape counts, not its content; its bias is used as it is.
        source: gives the weight's rows in the head's dtype and on the device.
        device: where the head computes.
    """
    rows, columns = head.weight.shape
    bounds = list(slice_bounds(rows, columns, device))

    def forward(hidden_states: Tensor) -> Tensor:
        in_float32 = sums_halves_in_float32(device, hidden_states.dtype)
        product = _linear_in_float32 if in_float32 else linear
        if len(bounds) == 1:
            return product(hidden_states, source.rows(0, rows), head.bias)
        dtype = torch.float32 if in_float32 else hidden_states.dtype
        logits = hidden_states.new_empty((*hidden_states.shape[:-1], rows), dtype=dtype)
        for first, end in bounds:
            bias = None if head.bias is None else head.bias[first:end]
            logits[..., first:end] = product(hidden_states, source.rows(first, end), bias)
        return logits

    head.forward = forward  # type: ignore[method-assign,assignment]


def _linear_in_float32(hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer in half precision whose sums are not rounded to half precision.

    Rounded to bf16, one position in thirty of the demo's teacher has several first choices.
    """
    logits = torch.mm(hidden_states.flatten(0, -2), weight.T, out_dtype=torch.float32)
    logits = logits if bias is None else logits.add_(bias)
    return logits.view(*hidden_states.shape[:-1], -1)


def slice_resident_head(model: PreTrainedModel) -> None:
    """Let a model in memory compute its logits in the slices in which it would compute them when streamed."""
    head = model.get_output_embeddings()
    if can_slice_head(head):
        slice_head(head, ResidentRows(head.weight), device=head.weight.device)


def can_slice_head(head: nn.Module | None) -> bool:
    """Return whether a head is a plain linear layer, which is all that :func:`slice_head` knows how to cut."""
    return isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward


def gather_embedding(embedding: nn.Embedding, read_rows: Callable[[Tensor], Tensor], core: nn.Module) -> None:
    """Make an embedding read only the rows of the ids it is given; changes ``embedding.forward``.

    The class's own forward runs on a small matrix of the rows in use and on ids into it, so that subclasses that scale
    or normalise keep doing so.

    Args:
        embedding: its weight stays where it is (on the meta device).
        read_rows: gives the rows [n, columns] of sorted, distinct ids [n], on the ids' device.
        core: the module that is called with the ids. Llama 4's moves them to the weight's device, where none are.
    """
    given: list[Tensor] = []

    def remember(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given[:] = [ids for ids in (named.get("input_ids"), *args[:1]) if isinstance(ids, Tensor)]

    core.register_forward_pre_hook(remember, with_kwargs=True)
    own_forward = type(embedding).forward
    whole = embedding._parameters["weight"]
    embedding.padding_idx = None  # only matters to gradients, and would not be a row of the small matrix

    def forward(input_ids: Tensor) -> Tensor:
        if input_ids.is_meta and given:
            input_ids = given[0]
        in_use, places = input_ids.unique(return_inverse=True)
        embedding._parameters["weight"] = nn.Parameter(read_rows(in_use), requires_grad=False)
        try:
            embedded: Tensor = own_forward(embedding, places)
            return embedded
        finally:
            embedding._parameters["weight"] = whole  # still on meta: using it elsewhere fails loudly

    embedding.forward = forward  # type: ignore[method-assign,assignment]


def runs(ids: Tensor) -> Iterator[tuple[int, int, int]]:
    """Neighbouring ids of a sorted, distinct sequence: (place of the first, first id, count) of each run."""
    if ids.numel() == 0:
        return
    breaks = torch.nonzero(ids[1:] != ids[:-1] + 1).view(-1) + 1
    places = [0, *breaks.tolist(), ids.numel()]
    for place, end in itertools.pairwise(places):
        yield place, int(ids[place]), end - place
