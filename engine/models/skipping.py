"""A model with some of its layers left out, and what each layer does to its input: both without touching a weight.

A layer that is left out hands its input on. The model's own forward stays what it is, so that this works with any
decoder, whole or streamed: a streamed model runs many micro-batches side by side, and each may leave out other layers,
so that one reading of the layers serves many cuts. Knows nothing of text or of losses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from greenlet import getcurrent
from torch import Tensor, nn


@contextmanager
def watched(layers: nn.ModuleList, heard: Callable[[int, Tensor, Any], None]) -> Iterator[None]:
    """Hear of each layer's input and output while this is open.

    Args:
        layers: a model's decoder layers.
        heard: called with the layer's index, its input hidden states [batch, length, hidden], and what it returns:
            hidden states, or a tuple that begins with them.
    """

    def forward_of(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            output = forward(*args, **kwargs)
            heard(index, given, output)
            return output

        return watching

    with _replaced(layers, forward_of):
        yield


@contextmanager
def cut_to(layers: nn.ModuleList, cuts: Sequence[Collection[int]], outputs: Sequence[int | None]) -> Iterator[None]:
    """Let each of the next micro-batches go through some of the layers only.

    Args:
        layers: a model's decoder layers.
        cuts: for each micro-batch, in the order in which they will come, the layers that it goes through.
        outputs: for each layer how many values it returns; None where it returns its hidden states alone.
    """
    begun = 0
    # A whole model finishes a micro-batch before it begins the next, all in one greenlet; a streamed one has a greenlet
    # for each. Both begin them in order, and everything begins with layer 0.
    cut_of: dict[Any, Collection[int]] = {}

    def forward_of(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def cutting(*args: Any, **kwargs: Any) -> Any:
            nonlocal begun
            if index == 0:
                cut_of[getcurrent()] = cuts[begun]
                begun += 1
            if index in cut_of[getcurrent()]:
                return forward(*args, **kwargs)
            given = args[0] if args else kwargs["hidden_states"]
            size = outputs[index]
            return given if size is None else (given, *[None] * (size - 1))

        return cutting

    with _replaced(layers, forward_of):
        yield


@contextmanager
def _replaced(
    layers: nn.ModuleList, forward_of: Callable[[int, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Give each layer another forward for a while; an instance attribute shadows the method."""
    own = [layer.__dict__.get("forward") for layer in layers]
    for index, layer in enumerate(layers):
        layer.forward = forward_of(index, layer.forward)
    try:
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            if before is None:
                del layer.forward
            else:
                layer.forward = before
