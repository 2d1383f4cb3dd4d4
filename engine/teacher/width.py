"""Selection of the teacher's neurons and key-value heads for a narrower student, by measurement on the text.

A neuron's importance is its effect on the hidden states: the root mean square of its activation on the text, times the
length of its column in the down projection. A key-value head has the importance of its query heads. The pass runs the
layers that the student keeps, with the same numbers streamed or not.

Source: Muralidharan et al. 2024 (Minitron), https://arxiv.org/abs/2407.14679, section 2.2, which takes the activations
alone; the column's length as in Sun et al. 2023 (Wanda), https://arxiv.org/abs/2306.11695, eq. 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.machine.torch_device import exact
from engine.model_files.narrow import Kept, Width
from engine.models.skipping import cut_to
from engine.teacher.depth import DeepTeacher, Piece


def choose_width(
    teacher: DeepTeacher,
    text: Sequence[Piece],
    layers: Sequence[int],
    width: Width,
    *,
    head_dim: int,
    outputs: Sequence[int | None],
    safe_point: Callable[[], None],
) -> dict[int, Kept]:
    """Parts that each of the student's layers keeps.

    Args:
        teacher: the whole model, in memory or streamed.
        text: training text.
        layers: of the teacher, that the student keeps.
        width: how many neurons and heads.
        head_dim: columns of a head.
        outputs: as :func:`engine.models.skipping.cut_to` takes them.
        safe_point: called between pieces of work; may raise to stop.
    """
    scores: dict[tuple[int, str], Tensor] = {}
    calls: dict[tuple[int, str], int] = {}
    with ExitStack() as stack:
        for index in layers:
            for name in ("mlp.down_proj", "self_attn.o_proj"):
                module = teacher.layers[index].get_submodule(name)
                handle = module.register_forward_pre_hook(partial(_hear, scores, calls, text, (index, name)))
                stack.callback(handle.remove)
        stack.enter_context(cut_to(teacher.layers, [list(layers)] * len(text), outputs))
        teacher.last_hidden_states([piece.ids for piece in text], on_progress=lambda *_: safe_point())
    return {
        index: Kept(
            _largest(scores[index, "mlp.down_proj"], width.neurons),
            _largest(_by_group(scores[index, "self_attn.o_proj"], width, head_dim), width.kv_heads),
        )
        for index in layers
    }


def _hear(
    scores: dict[tuple[int, str], Tensor],
    calls: dict[tuple[int, str], int],
    text: Sequence[Piece],
    key: tuple[int, str],
    module: nn.Module,
    args: Any,
) -> None:
    """Add the squares of what a projection is given, over the real positions, times those of its columns."""
    given = args[0].detach().float()
    # The n-th call is for the n-th piece, whole or streamed; a padded position's activations are not of the text.
    calls[key] = calls.get(key, -1) + 1
    real = text[calls[key]].real.to(given.device)
    squares = exact(given.reshape(*real.shape, -1)[real]).square().sum(0).cpu()
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta:
        squares = squares * exact(weight.detach().float().square().sum(0)).cpu()
    scores[key] = scores.get(key, torch.zeros_like(squares)) + squares


def _by_group(columns: Tensor, width: Width, head_dim: int) -> Tensor:
    """Sums over the columns of each key-value head's query heads."""
    return columns.reshape(-1, head_dim * (width.heads // width.kv_heads)).sum(1)


def _largest(scores: Tensor, count: int) -> tuple[int, ...]:
    """Indices of the largest, rising; of equal ones the first."""
    return tuple(sorted(torch.argsort(scores, descending=True, stable=True)[:count].tolist()))
