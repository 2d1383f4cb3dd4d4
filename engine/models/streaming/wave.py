"""One wave: every micro-batch passes through a layer before the next layer is loaded.

Each micro-batch runs the model's own forward in a greenlet. The forward of every decoder layer is replaced by one that
first waits, so the frames of all micro-batches pause before layer i until its weights are loaded. All work before,
between and after the layers (masks, rotary tables, state that layers share, final norms) is the model's own code, so
no architecture needs code here. Greenlets are used rather than threads, because torch has a gradient mode and a worker
team per thread, and all greenlets run in one thread.

Knows nothing of where weights come from.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from greenlet import GreenletExit, greenlet
from torch import Tensor, nn

from engine.errors import ModelError
from engine.models.streaming.hidden_store import HiddenStore


class _MicroBatch(greenlet):
    """A forward pass that can stand in front of a layer.

    Attributes:
        place: its number in the wave.
        waits_for: index of the layer it stands in front of; None once it has ended.
        result: the last hidden states, once it has ended.
        first: what its first layer was given, while the model's own frames keep it.
    """

    place: int = 0
    waits_for: int | None = None
    result: Tensor | None = None
    first: Tensor | None = None

    def holds(self, hidden_states: Any) -> list[Tensor]:
        """Tensors of this size that its frames keep: the layer's input, and often that of the first layer as well."""
        if not isinstance(hidden_states, Tensor):
            return []
        if self.first is None and self.waits_for == 0:
            self.first = hidden_states
        if self.first is None or self.first is hidden_states:
            return [hidden_states]
        if sys.getrefcount(self.first) <= 2:  # only this attribute and the call refer to it
            self.first = None
            return [hidden_states]
        return [hidden_states, self.first]


def run_wave(
    core: nn.Module,
    layers: nn.ModuleList,
    micro_batches: Sequence[Tensor],
    arrivals: Iterable[int],
    *,
    store: HiddenStore,
    on_step: Callable[[], None] = lambda: None,
    given: Sequence[Mapping[str, Any]] | None = None,
) -> list[Tensor]:
    """Run all micro-batches through all layers, layer by layer.

    Args:
        core: the module whose forward calls the layers and returns the last hidden states.
        layers: its decoder layers.
        micro_batches: token ids [batch, length] each, padded on the right.
        arrivals: indices 0, 1, … of the layers; each is yielded when that layer's weights are in place, and asking for
            the next one allows them to go.
        store: keeps the hidden states of waiting micro-batches.
        on_step: called after each micro-batch has gone through a layer; what it raises ends the wave.
        given: further arguments of the core's forward for each micro-batch.

    Returns:
        The last hidden states [batch, length, hidden] of each micro-batch.

    Raises:
        ModelError: the model does not call each layer once and in order.
    """
    main, has_gradients = greenlet.getcurrent(), torch.is_grad_enabled()
    waiting = _begun(core, micro_batches, given or [{}] * len(micro_batches))

    def wait_for(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current = greenlet.getcurrent()
        assert isinstance(current, _MicroBatch), "a layer was called outside of a wave"
        current.waits_for = index
        store.put(current.place, current.holds(args[0] if args else kwargs.get("hidden_states")))
        main.switch()
        store.get(current.place)

    try:
        with _forwards_that_wait(layers, wait_for), torch.no_grad():
            for micro_batch in waiting:
                micro_batch.switch()
            for index in arrivals:
                for micro_batch in waiting:
                    if micro_batch.waits_for != index:
                        raise _out_of_order(core, index, micro_batch.waits_for)
                    micro_batch.waits_for = None
                    micro_batch.switch()
                    on_step()
    finally:
        for micro_batch in waiting:
            if micro_batch:  # still standing somewhere: unwind its frames, which hold tensors
                micro_batch.throw(GreenletExit)
        # A frame that is unwound inside of a no_grad() of its own (HRM's) puts back what was outside of it: none.
        torch.set_grad_enabled(has_gradients)
    results = [micro_batch.result for micro_batch in waiting if micro_batch.result is not None]
    if len(results) < len(waiting):
        raise _out_of_order(core, len(layers), None)
    return results


def _begun(core: nn.Module, micro_batches: Sequence[Tensor], given: Sequence[Mapping[str, Any]]) -> list[_MicroBatch]:
    """The passes of all micro-batches; switching to one begins it."""
    main = greenlet.getcurrent()
    begun = [_MicroBatch(_forward(core, *each), main) for each in zip(micro_batches, given, strict=True)]
    for place, micro_batch in enumerate(begun):
        micro_batch.place = place
    return begun


def place_at_work() -> int:
    """Return the number of the micro-batch whose forward pass is running; for code that a model's forward calls."""
    current = greenlet.getcurrent()
    assert isinstance(current, _MicroBatch), "outside of a wave"
    return current.place


def _forward(core: nn.Module, input_ids: Tensor, given: Mapping[str, Any]) -> Callable[[], None]:
    def run() -> None:
        output = core(input_ids=input_ids, use_cache=False, **given)
        current = greenlet.getcurrent()
        assert isinstance(current, _MicroBatch)
        current.result = output[0]

    return run


@contextlib.contextmanager
def _forwards_that_wait(layers: nn.ModuleList, wait_for: Callable[..., None]) -> Iterator[None]:
    """Within this, each layer calls ``wait_for`` with its index and arguments before it computes."""
    forwards = [layer.forward for layer in layers]
    for index, layer in enumerate(layers):
        layer.forward = _waiting(layer.forward, index, wait_for)
    try:
        yield
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward


def _waiting(forward: Callable[..., Any], index: int, wait_for: Callable[..., None]) -> Callable[..., Any]:
    def waiting_forward(*args: Any, **kwargs: Any) -> Any:
        wait_for(index, args, kwargs)
        return forward(*args, **kwargs)

    return waiting_forward


def _out_of_order(core: nn.Module, expected: int, found: int | None) -> ModelError:
    where = "ended" if found is None else f"called layer {found}"
    return ModelError(
        f"{type(core).__name__} {where} where layer {expected} was expected.",
        "Streaming reads the layers once and in order; this model uses them in another way.",
        "Leave out --layer_by_layer for this teacher.",
    )
