"""Seconds that a layer of a transformer takes on this machine, forward and for a training step.

A layer is more than its products of matrices: between them it moves memory and starts operations, and how much that
costs depends on the machine, the number format, and on whether gradients are computed. A layer as most models have
it is therefore timed whole (Touvron et al. 2023, https://arxiv.org/abs/2302.13971, section 2.2: RMSNorm, rotary
positions, a gated inner part).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.machine.probed_layer import HEAD_DIM, LENGTH, inner_size
from engine.machine.products import use_products


@dataclass(frozen=True)
class LayerWork:
    """A layer with its input.

    Attributes:
        forward: a forward pass without gradients, its weights in the number format, as the teacher does it.
        learn: a forward and a backward pass under autocast, its weights in float32, as the student does it.
    """

    forward: Callable[[], object]
    learn: Callable[[], object]


def layer_work(hidden: int, rows: int, dtype: torch.dtype, device: torch.device) -> LayerWork:
    """A layer of a hidden size for timing.

    Args:
        hidden: a multiple of 64.
        rows: of :data:`LENGTH` tokens.
        dtype: of the products.
        device: where it is.
    """
    layer = _Layer(hidden).to(device)
    use_products(layer)
    states = torch.randn(rows, LENGTH, hidden, device=device)
    rotation = torch.rand(LENGTH, HEAD_DIM, device=device)
    own = layer if dtype == torch.float32 else copy.deepcopy(layer).to(dtype)
    own_states, own_rotation = states.to(dtype), rotation.to(dtype)

    def forward() -> None:
        with torch.no_grad():
            own(own_states, own_rotation)

    def learn() -> None:
        with _autocast(dtype, device):
            found: Tensor = layer(learned_from, rotation)
        found.backward(gradient)
        learned_from.grad = None
        layer.zero_grad()

    gradient, learned_from = states, states.clone().requires_grad_()
    return LayerWork(forward, learn)


def _autocast(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


class _Layer(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        inner = inner_size(hidden)
        self.norms = nn.ModuleList([_Norm(hidden), _Norm(hidden)])
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(hidden, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, states: Tensor, rotation: Tensor) -> Tensor:
        rows, length, hidden = states.shape
        normed = self.norms[0](states)
        query, key, value = (
            product(normed).view(rows, length, -1, HEAD_DIM).transpose(1, 2)
            for product in (self.query, self.key, self.value)
        )
        query, key = _rotated(query, rotation), _rotated(key, rotation)
        mixed = functional.scaled_dot_product_attention(query, key, value.to(query.dtype), is_causal=True)
        states = states + self.out(mixed.transpose(1, 2).reshape(rows, length, hidden))
        normed = self.norms[1](states)
        inner: Tensor = functional.silu(self.gate(normed)) * self.up(normed)
        return states + self.down(inner)


class _Norm(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, states: Tensor) -> Tensor:
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(states.dtype)


def _rotated(heads: Tensor, rotation: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * rotation + torch.cat((-second, first), dim=-1) * rotation
