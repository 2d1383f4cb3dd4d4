"""Hidden states of packed rows, as if each document were alone.

Whether a model can be cut between documents is measured: its first layers (as many as show each kind of layer) run on
rows of two documents and on each alone, and what comes out must be the same. A model that cannot be cut (layers with a
state or a convolution, code of its own for masks) gets each document in a batch row of its own: several passes over
the weights, and the same result.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.models.borders import cut, positions_in, takes_positions
from engine.models.core import find_core, last_hidden_states
from engine.models.documents import batches_of, find_documents
from engine.models.selfcheck import first_layers, layers_to_check

_LENGTHS = (7, 11, 6)  # of the documents in the row that is tried: the last two are not at its beginning
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_TOLERANCE = 3e-2

_measured: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def packed_hidden_states(model: PreTrainedModel, ids: Tensor, documents: Tensor | None) -> Tensor:
    """Hidden states of the last layer, after the final norm, of rows that hold several documents.

    Args:
        model: any causal language model.
        ids: int64 [batch, length], right-padded.
        documents: int64 [batch, length], the number of each token's document in its row, rising from 0; padding counts
            to the last. None where each row holds one document: nothing is cut then.

    Returns:
        [batch, length, hidden], with gradient where autograd is on.
    """
    if documents is None or can_be_cut(model):
        return last_hidden_states(model, ids, documents)
    return _one_by_one(model, ids, documents)


def can_be_cut(model: PreTrainedModel, device: torch.device | None = None) -> bool:
    """Return whether the documents of a row do not see each other in this model once attention is cut; measured once.

    Args:
        model: its first layers are run (:func:`engine.models.selfcheck.layers_to_check`).
        device: where it computes; where its embedding is, when not given.
    """
    if model not in _measured:
        _measured[model] = _measure(model, device or model.get_input_embeddings().weight.device)
    return _measured[model]


@torch.no_grad()
def _measure(model: PreTrainedModel, device: torch.device) -> bool:
    found = find_core(model)
    training = model.training
    rows = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(sum(_LENGTHS), device=device) * 7919 + 13)[None] % rows
    documents = torch.repeat_interleave(torch.tensor(_LENGTHS, device=device))[None]
    positions = {"position_ids": positions_in(documents)} if takes_positions(found.core) else {}
    model.eval()
    try:
        with (
            torch.autocast(device.type, enabled=False),
            first_layers(found, layers_to_check(found.layers)),
        ):
            alone = [found.core(input_ids=part, use_cache=False)[0] for part in ids.split(_LENGTHS, dim=1)]
            with cut(documents):
                packed = found.core(input_ids=ids, use_cache=False, **positions)[0]
    except (RuntimeError, NotImplementedError, IndexError, AttributeError, TypeError, ValueError):
        return False  # one by one it is run as ever
    finally:
        model.train(training)
    expected = torch.cat(alone, dim=1).float()
    error = (packed.float() - expected).abs().mean() / expected.abs().mean()
    return bool(error <= _TOLERANCE.get(packed.dtype, _HALF_TOLERANCE))


def _one_by_one(model: PreTrainedModel, ids: Tensor, documents: Tensor) -> Tensor:
    batch, length = ids.shape
    begins = torch.diff(documents, dim=1, prepend=documents[:, :1] - 1) != 0
    found = find_documents(begins.cpu().numpy(), torch.full((batch,), length).numpy())
    states: list[Tensor] = []
    places: list[Tensor] = []
    for chosen, longest in batches_of(found.lengths, most_tokens=ids.numel(), longest=length):
        first = torch.from_numpy(found.rows[chosen] * length + found.starts[chosen]).to(ids.device)
        lengths = torch.from_numpy(found.lengths[chosen]).to(ids.device)
        steps = torch.arange(longest, device=ids.device)
        is_real = steps < lengths[:, None]
        place = first[:, None] + torch.where(is_real, steps, 0)
        states.append(last_hidden_states(model, ids.flatten()[place])[is_real])
        places.append(place[is_real])
    together = torch.cat(states)
    order = torch.cat(places).argsort()
    return together[order].view(batch, length, -1)
