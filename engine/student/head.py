"""The student's head as the loss uses it: logits of one chunk forward, their gradient backward.

Two ways with the same result. :class:`LinearHead` is a plain matrix, which nearly every model has: its gradient is
added up in one matrix by ``addmm``. Any other head (soft-capped, scaled, two layers) is a function, and its own
autograd does the work. This file knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Rows of the head whose gradient is made at a time in half precision, where it cannot be added up in place.
_SLICE_ROWS = 8192


@dataclass(frozen=True)
class LinearHead:
    """``hidden @ weight.T + bias``, and nothing else.

    Attributes:
        weight: [V, H].
        bias: [V] or None.
        dtype: of the matrix products; None is the weight's own.
    """

    weight: Tensor
    bias: Tensor | None = None
    dtype: torch.dtype | None = None

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Logits [C, V]."""
        dtype = self.dtype or self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return nn.functional.linear(hidden_states.to(dtype), self.weight.to(dtype), bias)


Head = Callable[[Tensor], Tensor]


class HeadPass(Protocol):
    """One pass over the chunks of a loss.

    ``begin`` once, then ``forward`` and ``backward`` for each chunk, then ``end``. ``forward`` hands out a float32 (or
    float64) matrix that the caller may overwrite; ``backward`` takes it back with the gradient in it.
    """

    parameters: tuple[Tensor, ...]

    def begin(self, accumulate: bool) -> None:
        """Gradients are wanted; ``accumulate`` adds those of the parameters to their ``.grad`` at once."""

    def forward(self, hidden_states: Tensor, wants_gradient: bool) -> Tensor:
        """Logits of one chunk, [C, E or V]."""

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient of the chunk's hidden states, [C, H]."""

    def end(self) -> Sequence[Tensor | None]:
        """The gradient of each parameter; None where there is none, or it is in ``.grad`` already."""


def open_head(head: Head, hidden_states: Tensor, vocab_size: int) -> HeadPass:
    """A pass over this head; ``hidden_states`` [N, H] tells width, dtype and device only."""
    if isinstance(head, LinearHead):
        return _LinearPass(head, vocab_size)
    return _AutogradPass(head, hidden_states)


class _LinearPass:
    """Rows past ``vocab_size`` are not multiplied at all: padding has no logits and no gradient."""

    def __init__(self, head: LinearHead, vocab_size: int) -> None:
        self._head = head
        self._rows = vocab_size
        self._dtype = head.dtype or head.weight.dtype
        self.parameters: tuple[Tensor, ...] = (head.weight,) if head.bias is None else (head.weight, head.bias)
        self._weight = head.weight.detach()[:vocab_size].to(self._dtype)
        self._bias = None if head.bias is None else head.bias.detach()[:vocab_size].to(self._dtype)
        self._gradients: list[Tensor | None] = [None for _ in self.parameters]
        self._hidden_states: Tensor | None = None
        self._buffer: Tensor | None = None

    def begin(self, accumulate: bool) -> None:
        self._accumulate = accumulate
        for index, parameter in enumerate(self.parameters):
            if not parameter.requires_grad:
                continue
            if not accumulate:
                self._gradients[index] = torch.zeros_like(parameter)
            else:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self._gradients[index] = parameter.grad

    def forward(self, hidden_states: Tensor, wants_gradient: bool) -> Tensor:
        self._hidden_states = hidden_states.to(self._dtype)
        if self._dtype not in (torch.float32, torch.float64):
            return nn.functional.linear(self._hidden_states, self._weight, self._bias).float()
        # One buffer for all chunks: freeing and asking again for a block of this size leaves holes in the heap.
        if self._buffer is None:
            self._buffer = self._weight.new_empty(len(hidden_states), self._rows)
        logits = self._buffer[: len(hidden_states)]
        torch.mm(self._hidden_states, self._weight.T, out=logits)
        if self._bias is not None:
            logits += self._bias
        return logits

    def backward(self, gradient: Tensor) -> Tensor:
        assert self._hidden_states is not None
        gradient = gradient.to(self._dtype)
        weight_gradient, *bias_gradient = self._gradients
        if weight_gradient is not None:
            if weight_gradient.dtype == self._dtype:
                weight_gradient[: self._rows].addmm_(gradient.T, self._hidden_states)
            else:
                for start in range(0, self._rows, _SLICE_ROWS):
                    rows = slice(start, min(start + _SLICE_ROWS, self._rows))
                    weight_gradient[rows] += gradient[:, rows].T @ self._hidden_states
        if bias_gradient and bias_gradient[0] is not None:
            bias_gradient[0][: self._rows] += gradient.sum(dim=0, dtype=bias_gradient[0].dtype)
        return gradient @ self._weight

    def end(self) -> Sequence[Tensor | None]:
        self._buffer = self._hidden_states = None
        return [None] * len(self.parameters) if self._accumulate else self._gradients


class _AutogradPass:
    """The head is a function; which parameters it uses is read from the graph that it leaves."""

    def __init__(self, head: Head, hidden_states: Tensor) -> None:
        self._head = head
        self.parameters = _leaves(head, hidden_states) if torch.is_grad_enabled() else ()
        self._gradients: list[Tensor | None] = [None for _ in self.parameters]

    def begin(self, accumulate: bool) -> None:
        self._accumulate = accumulate

    def forward(self, hidden_states: Tensor, wants_gradient: bool) -> Tensor:
        with torch.set_grad_enabled(wants_gradient):
            self._hidden_states = hidden_states.detach().requires_grad_(wants_gradient)
            self._logits = self._head(self._hidden_states)
        logits = self._logits.detach()
        # Overwriting the head's own output is safe unless its last operation keeps it (autograd then raises).
        return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()

    def backward(self, gradient: Tensor) -> Tensor:
        inputs = [self._hidden_states, *self.parameters]
        gradients = torch.autograd.grad(self._logits, inputs, gradient.to(self._logits.dtype))
        for index, (parameter, addend) in enumerate(zip(self.parameters, gradients[1:], strict=True)):
            total = parameter.grad if self._accumulate else self._gradients[index]
            if total is not None:
                total += addend
            elif self._accumulate:
                parameter.grad = addend
            else:
                self._gradients[index] = addend
        del self._logits
        return gradients[0]

    def end(self) -> Sequence[Tensor | None]:
        return self._gradients


def _leaves(head: Head, hidden_states: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        logits = head(hidden_states.new_zeros(1, hidden_states.shape[1]))
    found: dict[int, Tensor] = {}
    waiting: list[Any] = [logits.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        waiting += [following for following, _ in node.next_functions]
    return tuple(found.values())
