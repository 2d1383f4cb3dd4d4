"""The two halves of any causal language model: the core that makes hidden states, and the head that makes logits.

Full logits are the largest tensor of a language model, and no caller needs all of them at once. So the model's own
forward is run with its core (the module that holds the decoder layers) patched for one call: either to return the
hidden states and pass one token to the lm_head, or to feed a block of hidden states to the lm_head. The model's own
code does all work of the head (bias, softcap, scale); no architecture is named here.

Both ways are differentiable. This file knows nothing of losses, records or where weights come from.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from engine.errors import ModelError
from engine.machine.out_of_memory import is_out_of_memory
from engine.machine.products import linear
from engine.models.borders import cut, positions_in, takes_positions


@dataclass(frozen=True)
class Core:
    """Where a model keeps its decoder layers.

    Attributes:
        core: the module whose forward turns ids into last hidden states (final norm included).
        layers: its decoder layers, in order.
        layers_prefix: the name of the list, as in ``model.layers``.
        holder: the module that the list is an attribute of: the core itself, or a part of it (BERT's encoder, which is
            given embedded ids).
    """

    core: nn.Module
    layers: nn.ModuleList
    layers_prefix: str
    holder: nn.Module


_found: weakref.WeakKeyDictionary[nn.Module, Core] = weakref.WeakKeyDictionary()


def find_core(model: PreTrainedModel) -> Core:
    """The largest list of decoder layers, and the module around it that is given token ids.

    Raises:
        ModelError: there is no such list, or the model has no head above it.
    """
    if model not in _found:
        _found[model] = _search(model)
    return _found[model]


def last_hidden_states(model: PreTrainedModel, ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """Return the hidden states of the last layer, after the final norm: the lm_head's input.

    No attention mask is given: right-padded rows come out the same without it, as a token sees only what is before it,
    and the masks of all micro-batches would be the larger part of the memory.

    Args:
        model: any causal language model, in training or evaluation mode.
        ids: int64 [batch, length], right-padded.
        documents: int64 [batch, length], the number of each token's document in its row, rising from 0, for a model
            that can be cut between them (:func:`engine.models.packed.can_be_cut`). None where each row holds one.

    Returns:
        [batch, length, hidden], in the model's dtype, with gradient where autograd is on.
    """
    hidden_states, _ = _run(model, ids, documents, use_cache=False)
    return hidden_states


def core_hidden_states(model: PreTrainedModel, ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """As :func:`last_hidden_states`, by the core alone: the head is not called, and no argument of the model's own."""
    core = find_core(model).core
    positions = {} if documents is None or not takes_positions(core) else {"position_ids": positions_in(documents)}
    with nullcontext() if documents is None else cut(documents):
        states: Tensor = core(input_ids=ids, use_cache=False, return_dict=True, **positions).last_hidden_state
    return states


def hidden_states_and_cache(model: PreTrainedModel, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """As :func:`last_hidden_states`, for tokens that follow those of an earlier call.

    Args:
        model: any causal language model, in evaluation mode.
        ids: int64 [batch, length].
        cache: what the call before gave; None at the beginning.

    Returns:
        Hidden states of ``ids``, and the cache for the next call: None where the model has none.
    """
    return _run(model, ids, None, use_cache=True, **({} if cache is None else {_cache_name(model): cache}))


def _cache_name(model: PreTrainedModel) -> str:
    """Return the name of a forward pass's cache argument and output: ``past_key_values`` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def _run(model: PreTrainedModel, ids: Tensor, documents: Tensor | None, **how: Any) -> tuple[Tensor, Any]:
    core = find_core(model).core
    original = core.forward
    positions = {} if documents is None or not takes_positions(core) else {"position_ids": positions_in(documents)}
    kept: list[Tensor] = []
    caches: list[Any] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **(kwargs | positions))
        kept.append(output.last_hidden_state)
        caches.append(getattr(output, _cache_name(model), None) if how["use_cache"] else None)
        shortened = copy.copy(output)
        # One token is passed to the head, so that the model's forward ends as it always does.
        shortened.last_hidden_state = output.last_hidden_state[:, :1]
        return shortened

    with patched(core, forward), nullcontext() if documents is None else cut(documents):
        model(input_ids=ids, return_dict=True, **how)
    return _only(kept, model), caches[0]


def logits_of(model: PreTrainedModel, hidden_states: Tensor) -> Tensor:
    """Return the output of the model's own lm_head for a block of hidden states.

    Args:
        model: any causal language model; only its head is used.
        hidden_states: [tokens, hidden], as made by :func:`last_hidden_states`.

    Returns:
        [tokens, vocab_rows] logits in the head's dtype, with gradient where autograd is on.
    """
    core = find_core(model).core
    calls: list[Tensor] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(hidden_states)
        return _GivenOutput(last_hidden_state=hidden_states[None])

    ids = torch.zeros((1, hidden_states.shape[0]), dtype=torch.int64, device=hidden_states.device)
    with patched(core, forward):
        logits: Tensor = model(input_ids=ids, use_cache=False, return_dict=True).logits
    _only(calls, model)
    return logits[0]


def head_is_linear(model: PreTrainedModel) -> tuple[Tensor, Tensor | None] | None:
    """Weight [vocab_rows, hidden] and bias [vocab_rows] (or None) when the head is a linear layer and nothing else.

    Checked with numbers, on hidden states from tiny to huge, so that a scale or a softcap shows: None where the head
    does anything more.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    weight, bias = head.weight, head.bias
    if weight.is_meta:
        return None
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-2, 3, steps=6)[:, None]
    probes = (torch.randn((6, weight.shape[1]), generator=generator) * sizes).to(weight.device, weight.dtype)
    with torch.no_grad():
        try:
            own = logits_of(model, probes).to(weight.dtype)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return None  # the matrix comes behind other layers, and is not as wide as the hidden states (ELECTRA)
        plain = linear(probes, weight, bias)
    return (weight, bias) if differ_by_rounding_only(own, plain, 1e-5) else None


def differ_by_rounding_only(own: Tensor, plain: Tensor, tolerance: float) -> bool:
    """Whether a head's logits [rows, V] are those of a plain product.

    The head may compute it with another kernel or in slices: a sum near 0 of large terms is then far off in its own
    measure. Rounding is measured by the largest logit of its row.
    """
    if own.shape != plain.shape:
        return False
    allowed = tolerance * plain.abs().amax(dim=1, keepdim=True)
    return bool(((own - plain).abs() <= allowed).all())


class _GivenOutput(BaseModelOutputWithPast):
    """A core's output with nothing but hidden states; whatever else a head's forward passes on (caches …) is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def patched(core: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While this is open, a module's forward is another function; hooks on the module are called as ever."""
    before = core.__dict__.get("forward")  # streaming patches the instance as well
    core.forward = forward  # an instance attribute shadows the method for this call
    try:
        yield
    finally:
        if before is None:
            del core.forward
        else:
            core.forward = before


def _only(calls: list[Tensor], model: PreTrainedModel) -> Tensor:
    if len(calls) != 1:
        raise ModelError(
            f"{type(model).__name__} runs its decoder {len(calls)} times in a forward pass, not once.",
            "Its hidden states cannot be separated from its head.",
            "Choose another model.",
        )
    return calls[0]


def _search(model: PreTrainedModel) -> Core:
    names = {str(name) for name in (model._no_split_modules or [])}
    candidates = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 0
        and all(isinstance(layer, GradientCheckpointingLayer) or type(layer).__name__ in names for layer in module)
    ]
    if not candidates:  # old models (CTRL, XLM) say nothing of their layers: members of one class that compute
        candidates = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList)
            and len({type(layer) for layer in module}) == 1
            and type(module[0]).__module__ == type(model).__module__
        ]
    if not candidates:
        raise ModelError(
            f"{type(model).__name__} has no list of decoder layers that could be found.",
            "",
            "Choose a causal language model of the transformers library.",
        )
    # A tower for pictures may be larger than the decoder.
    told = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    prefix, layers = max(
        candidates,
        key=lambda entry: (len(entry[1]) == told, sum(parameter.numel() for parameter in entry[1].parameters())),
    )
    path = prefix.rpartition(".")[0]
    holder = core = model.get_submodule(path)
    while core is not model and not _takes_ids(core) and "." in path:
        path = path.rpartition(".")[0]
        core = model.get_submodule(path)
    core = core if _takes_ids(core) else holder
    if core is model:
        raise ModelError(
            f"{type(model).__name__} has no head above its decoder layers.",
            "The next token cannot be scored.",
            "Choose a model whose architecture ends in ForCausalLM or LMHeadModel.",
        )
    assert isinstance(layers, nn.ModuleList)
    return Core(core, layers, prefix, holder)


def _takes_ids(module: nn.Module) -> bool:
    return "input_ids" in inspect.signature(type(module).forward).parameters
