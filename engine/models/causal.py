"""Is a model causal? Asked of the model itself: do the hidden states at a token change with the tokens after it?

A name does not show it: BERT's class is in transformers' table of causal models and sees both sides unless its
configuration says otherwise, XLNet and CPM-Ant always do, and Gemma 3's text model does with one setting. A teacher
that sees the next token would give records of tokens that it has read, and nothing else would show it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.errors import ModelError
from engine.machine.out_of_memory import is_out_of_memory
from engine.models.core import find_core, last_hidden_states
from engine.models.selfcheck import first_layers, layers_to_check

LENGTH = 16  # tokens; the second half of them is exchanged
# Mean difference as a share of the mean size: another number of tokens for an expert rounds otherwise.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_TOLERANCE = 3e-2


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Run a model's first layers (as many as show each kind of layer) on two rows with the same beginning.

    Args:
        model: with its weights, in memory.

    Raises:
        ModelError: it cannot be run on token ids, or the hidden states of the beginning differ.
    """
    found = find_core(model)
    training = model.training
    embedding = model.get_input_embeddings().weight
    if embedding.is_meta:
        return  # nothing can be computed
    model.eval()
    try:
        with first_layers(found, layers_to_check(found.layers)):
            states = [last_hidden_states(model, ids) for ids in rows_with_one_beginning(embedding)]
    except (RuntimeError, NotImplementedError, IndexError, AttributeError, TypeError, ValueError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{type(model).__name__} cannot be run on token ids alone: {_first_line(error)}",
            "Distillation gives a model the tokens of a text, and nothing else.",
            "Choose another causal language model.",
        ) from error
    finally:
        model.train(training)
    require_causal(model, *states)


def rows_with_one_beginning(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Two rows of ids, [1, LENGTH] each, of which the first halves are equal and the second halves differ.

    Args:
        embedding: [vocabulary, hidden]; only its size and device are looked at.
    """
    first = (torch.arange(LENGTH, device=embedding.device) * 7919 + 13)[None] % embedding.shape[0]
    second = first.clone()
    second[:, LENGTH // 2 :] = (first[:, LENGTH // 2 :] + 1) % embedding.shape[0]
    return first, second


def require_causal(model: PreTrainedModel, first: Tensor, second: Tensor) -> None:
    """Compare the hidden states of :func:`rows_with_one_beginning`, [1, LENGTH, hidden] each.

    Raises:
        ModelError: those of the beginning differ. Numbers that are none are left to other checks.
    """
    ours, theirs = (states[:, : LENGTH // 2].float() for states in (first, second))
    error = (ours - theirs).abs().mean() / theirs.abs().mean()
    if not bool(error.isfinite()) or bool(error <= _TOLERANCE.get(first.dtype, _HALF_TOLERANCE)):
        return
    raise ModelError(
        f"{type(model).__name__} is not causal: what it computes at a token depends on the tokens after it.",
        "A record describes the next token, which this model has already seen.",
        "Choose a model that predicts the next token from the tokens before it.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."
