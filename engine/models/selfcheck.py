"""Is streaming this model the same as having it in memory? Asked of the real model, before any work is done.

Its first layers (as many as it takes to see each kind of layer once) run on a few tokens in two ways: streamed, and by
the model's plain forward in which each layer is loaded, used and dropped in turn. With the same input the two must
agree to the last bit. A plain forward with an attention mask must agree but for rounding: that is what allows streaming
to leave the mask out. And the tables that are in no file (rotary frequencies, masks, scales) must be those that the
model's own constructor computes.

Takes the memory of one layer at a time, and reads these layers three times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from engine.errors import BadNumbers, ModelError
from engine.machine.out_of_memory import is_out_of_memory
from engine.models.core import Core
from engine.models.meta import build_with_buffers

_FEWEST, _MOST = 2, 12  # layers
_LENGTHS = (8, 5)  # tokens in the two rows
# Mean difference with and without a mask, as a share of the mean size. Half precision rounds to 1 part in 256.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_TOLERANCE = 3e-2
# Mean difference of two kernels' rounding after a few layers.
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5}
_HALF_ROUNDING = 1e-2
_REMEDY = "Leave out --layer_by_layer for this teacher, and report its architecture."


@dataclass(frozen=True)
class Ways:
    """The two ways through a model's layers.

    Attributes:
        run_streamed: last hidden states of micro-batches after the first n layers, streamed.
        load_layer: put a layer's weights in place.
        drop_layer: take them away.
    """

    run_streamed: Callable[[Sequence[Tensor], int], list[Tensor]]
    load_layer: Callable[[int], None]
    drop_layer: Callable[[int], None]


@dataclass(frozen=True)
class _Rows:
    """Tokens that both ways are compared on: ids [rows, length], and the mask of those that are no padding."""

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel) -> _Rows:
        vocab_rows = model.get_input_embeddings().weight.shape[0]
        ids = (torch.arange(len(_LENGTHS) * max(_LENGTHS)) * 7919 + 13).view(len(_LENGTHS), -1) % vocab_rows
        mask = torch.arange(max(_LENGTHS)) < torch.tensor(_LENGTHS)[:, None]
        device = _device_of(model)
        return cls(ids.masked_fill(~mask, 0).to(device), mask.to(device))


def check_streaming(model: PreTrainedModel, core: Core, dtype: torch.dtype, ways: Ways) -> str:
    """Compare both ways on the model's first layers.

    Both are equal to the last bit on every processor that was tried. If a processor takes another kernel for memory at
    another address, they differ by its rounding: then streaming continues, and the caller reports that. A mistake (a
    layer mixed up with another, a wrong table) is far beyond rounding.

    Args:
        model: with everything but its layers' weights in place.
        core: its core and layers.
        dtype: that it computes in.
        ways: through its layers.

    Returns:
        The promise that cannot be kept here, in a sentence; empty where the two are equal to the last bit.

    Raises:
        ModelError: the two disagree; the message says where.
        BadNumbers: what comes out of the layers is NaN or infinity, streamed or not.
    """
    count = layers_to_check(core.layers)
    rows = _Rows.of(model)
    try:
        note = _compare(model, core, count, rows, dtype, ways)
    except (RuntimeError, NotImplementedError, IndexError, AttributeError, TypeError) as error:
        if is_out_of_memory(error):
            raise  # says nothing of the model, and there is a way on with less
        raise ModelError(
            f"{type(model).__name__} cannot be run layer by layer: {str(error).splitlines()[0]}",
            "Something in it uses a weight outside of the layer that the weight belongs to.",
            _REMEDY,
        ) from error
    _check_buffers(model, count, dtype)
    return note


def _compare(model: PreTrainedModel, core: Core, count: int, rows: _Rows, dtype: torch.dtype, ways: Ways) -> str:
    worst = 0.0
    # Two micro-batches of different shapes, so that mixing them up would show.
    micro_batches = [rows.ids, rows.ids[:1, :-1]]
    streamed = ways.run_streamed(micro_batches, count)
    with torch.no_grad(), first_layers(core, count) as layers, _one_at_a_time(layers, ways):
        for batch, ours in zip(micro_batches, streamed, strict=True):
            plain = core.core(input_ids=batch, use_cache=False)[0]
            if not torch.isfinite(plain).all():
                raise BadNumbers(
                    f"{type(model).__name__} gives NaN or infinity in its first {count} layers.",
                    "The model in memory would do the same: nothing could be learned from it.",
                    "In half precision, try --precision fp32; in fp32 the weights are damaged: save or download them "
                    "again.",
                )
            if not torch.equal(ours, plain):
                _require(ours.shape == plain.shape, model, "gives another shape when its layers are streamed")
                worst = max(worst, _relative(ours, plain))
                _require(
                    worst <= _ROUNDING.get(dtype, _HALF_ROUNDING),
                    model,
                    f"differs after {count} layers when its layers are streamed (relative difference {worst:.2g})",
                )
        masked = core.core(input_ids=rows.ids, attention_mask=rows.mask.long(), use_cache=False)[0]
    error = _relative(streamed[0][rows.mask], masked[rows.mask])
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    _require(error <= tolerance, model, f"sees padding on the right (relative difference {error:.2g})")
    if not worst:
        return ""
    return (
        f"On this processor a streamed {type(model).__name__} rounds differently from one in memory (relative "
        "difference "
        f"{worst:.2g}): its records are as accurate, but not bit-identical."
    )


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Mean difference as a share of the mean size; infinite where a value is not a number."""
    error = float((ours.float() - theirs.float()).abs().mean() / theirs.float().abs().mean())
    return error if error == error else float("inf")


def _check_buffers(model: PreTrainedModel, count: int, dtype: torch.dtype) -> None:
    config = shortened(model.config, num_layers_of(model), count)
    try:
        twin = build_with_buffers(type(model), config, dtype=dtype)
    except (ValueError, IndexError, KeyError, TypeError):  # fewer layers are no model (Zamba's share a block)
        twin = build_with_buffers(type(model), model.config, dtype=dtype)
    persistent = set(twin.state_dict())
    ours = dict(model.named_buffers())
    for name, theirs in twin.named_buffers():
        if name in persistent or name not in ours:
            continue
        mine = ours[name].cpu()
        same = mine.shape == theirs.shape and torch.equal(mine, theirs.to(mine.dtype))
        _require(same, model, f"computes its table {name} in a way that loading does not repeat")


def layers_to_check(layers: nn.ModuleList) -> int:
    """How many of the first layers show each kind of layer that there is."""
    kinds: set[Any] = set()
    count = 0
    for index, layer in enumerate(layers):
        kind = _kind(layer)
        if kind not in kinds:
            kinds.add(kind)
            count = index + 1
    return min(len(layers), max(_FEWEST, count), _MOST)


def shortened(config: PretrainedConfig, num_layers: int, count: int) -> PretrainedConfig:
    """The configuration of the same model with only its first layers."""
    short = copy.deepcopy(config)
    for name, value in list(vars(short).items()):
        if isinstance(value, list) and len(value) == num_layers:
            setattr(short, name, value[:count])
    short.num_hidden_layers = count
    return short


@contextmanager
def first_layers(core: Core, count: int) -> Iterator[nn.ModuleList]:
    """Let the core have only its first layers for a while."""
    leaf = core.layers_prefix.rpartition(".")[2]
    short = nn.ModuleList(list(core.layers)[:count])
    setattr(core.holder, leaf, short)
    try:
        yield short
    finally:
        setattr(core.holder, leaf, core.layers)


@contextmanager
def _one_at_a_time(layers: nn.ModuleList, ways: Ways) -> Iterator[None]:
    handles = []
    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(lambda *_, index=index: ways.load_layer(index)))
        handles.append(layer.register_forward_hook(lambda *_, index=index: ways.drop_layer(index)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kind(layer: nn.Module) -> Any:
    """Return a layer's properties other than its weights and its number."""
    modules = tuple(
        (name, type(module).__name__, *sorted(item for item in vars(module).items() if _tells(*item)))
        for name, module in layer.named_modules()
    )
    return modules, tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())


def _tells(key: str, value: object) -> bool:
    numbers = ("layer_idx", "layer_id", "layer_number")
    return isinstance(value, bool | int | float | str) and key not in numbers


def num_layers_of(model: PreTrainedModel) -> int:
    """Decoder layers, as the configuration counts them."""
    return int(model.config.get_text_config().num_hidden_layers)


def _device_of(model: nn.Module) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()]
    return next((tensor.device for tensor in tensors if tensor.device.type != "meta"), torch.device("cpu"))


def _require(holds: bool, model: PreTrainedModel, what: str) -> None:
    if not holds:
        raise ModelError(
            f"{type(model).__name__} {what}.", "Its records would not be those of the model in memory.", _REMEDY
        )
