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

from engine.machine.device import Device
from engine.machine.products import linear, linear_into
from engine.models.streaming.head_rows import MatrixOnDisk

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
        return linear(hidden_states.to(dtype), self.weight.to(dtype), bias)

    @property
    def columns(self) -> int:
        """H."""
        return int(self.weight.shape[1])

    def rows(self, rows: slice) -> Tensor:
        """Some rows of the weight, without gradient."""
        return self.weight.detach()[rows]


@dataclass(frozen=True)
class FrozenRows:
    """A head that is a matrix on the disk, of which a slice is read where it is needed; it is not trained.

    Attributes:
        matrix: [V, H].
        bias: [V] or None.
        whole: the model's own head, for the logits of a few positions.
    """

    matrix: MatrixOnDisk
    bias: Tensor | None
    whole: Callable[[Tensor], Tensor]

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Logits [C, V]."""
        return self.whole(hidden_states)

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return self.matrix.dtype

    @property
    def columns(self) -> int:
        """H."""
        return self.matrix.shape[1]

    def rows(self, rows: slice) -> Tensor:
        """Some rows of the weight."""
        return self.matrix.rows(rows)


SlicedHead = LinearHead | FrozenRows
"""Heads whose loss can be computed in slices of the vocabulary."""
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

    def backward(self, gradient: Tensor, into: Tensor) -> None:
        """Write the gradient of the chunk's hidden states into [C, H]; it is there after ``end`` at the latest."""

    def end(self) -> Sequence[Tensor | None]:
        """The gradient of each parameter; None where there is none, or it is in ``.grad`` already."""


def open_head(head: Head, hidden_states: Tensor, vocab_size: int) -> HeadPass:
    """A pass over this head; of ``hidden_states`` [N, H] only shape, dtype and device are looked at."""
    if isinstance(head, LinearHead):
        return _LinearPass(head, vocab_size, len(hidden_states))
    return _AutogradPass(head, hidden_states)


class _LinearPass:
    """Rows past ``vocab_size`` are not multiplied at all: padding has no logits and no gradient."""

    def __init__(self, head: LinearHead, vocab_size: int, num_positions: int) -> None:
        self._head = head
        self._rows = vocab_size
        self._dtype = head.dtype or head.weight.dtype
        self.parameters: tuple[Tensor, ...] = (head.weight,) if head.bias is None else (head.weight, head.bias)
        self._weight = head.weight.detach()[:vocab_size].to(self._dtype)
        self._bias = None if head.bias is None else head.bias.detach()[:vocab_size].to(self._dtype)
        self._gradients: list[Tensor | None] = [None for _ in self.parameters]
        self._hidden_states: Tensor | None = None
        self._buffer: Tensor | None = None
        self._num_positions = num_positions
        self._waiting: _Waiting | None = None
        self._is_unwritten = False  # whether the weight's gradient is memory without values

    def begin(self, accumulate: bool) -> None:
        self._accumulate = accumulate
        for index, parameter in enumerate(self.parameters):
            if not parameter.requires_grad:
                continue
            gradient = parameter.grad if accumulate else None
            if gradient is None:
                # The first product is written into the weight's gradient: a matrix of zeros costs as much time as that.
                self._is_unwritten |= index == 0
                gradient = torch.empty_like(parameter) if index == 0 else torch.zeros_like(parameter)
                gradient[self._rows :] = 0
            if accumulate:
                parameter.grad = gradient
            self._gradients[index] = gradient

    def forward(self, hidden_states: Tensor, wants_gradient: bool) -> Tensor:
        self._hidden_states = hidden_states.to(self._dtype)
        if self._dtype not in (torch.float32, torch.float64):
            return nn.functional.linear(self._hidden_states, self._weight, self._bias).float()
        # One buffer for all chunks: freeing and asking again for a block of this size leaves holes in the heap.
        if self._buffer is None:
            self._buffer = self._weight.new_empty(len(hidden_states), self._rows)
        logits = self._buffer[: len(hidden_states)]
        linear_into(logits, self._hidden_states, self._weight)
        if self._bias is not None:
            logits += self._bias
        return logits

    def backward(self, gradient: Tensor, into: Tensor) -> None:
        assert self._hidden_states is not None
        weight_gradient, *bias_gradient = self._gradients
        gradient = gradient[:, : self._rows]
        if bias_gradient and bias_gradient[0] is not None:
            bias_gradient[0][: self._rows] += gradient.sum(dim=0, dtype=bias_gradient[0].dtype)
        if weight_gradient is None or weight_gradient.dtype == self._dtype:
            gradient = gradient.to(self._dtype)
            if weight_gradient is not None and self._is_unwritten:
                torch.mm(gradient.T, self._hidden_states, out=weight_gradient[: self._rows])
                self._is_unwritten = False
            elif weight_gradient is not None:
                weight_gradient[: self._rows].addmm_(gradient.T, self._hidden_states)
            into.copy_(gradient @ self._weight)
            return
        if self._waiting is None:
            most_bytes = Device.of(str(gradient.device)).waiting_bytes
            most = max(len(gradient), most_bytes // (self._rows * self._weight.element_size()))
            self._waiting = _Waiting.of(self._weight, min(most, max(len(gradient), self._num_positions)))
        if not self._waiting.has_room(len(gradient)):
            self._multiply(self._waiting, weight_gradient)
        self._waiting.add(gradient, self._hidden_states, into)

    def _multiply(self, waiting: _Waiting, weight_gradient: Tensor) -> None:
        """Both products of the backward pass, for all chunks that wait."""
        gradients, hidden_states = waiting.taken()
        for start in range(0, self._rows, _SLICE_ROWS):
            rows = slice(start, min(start + _SLICE_ROWS, self._rows))
            product = gradients[:, rows].T @ hidden_states
            if self._is_unwritten:
                weight_gradient[rows] = product
            else:
                weight_gradient[rows] += product
        self._is_unwritten = False
        waiting.give(gradients @ self._weight)

    def end(self) -> Sequence[Tensor | None]:
        if self._waiting is not None and self._gradients[0] is not None:
            self._multiply(self._waiting, self._gradients[0])
        if self._is_unwritten and self._gradients[0] is not None:
            self._gradients[0].zero_()  # there was no position
        self._buffer = self._hidden_states = self._waiting = None
        return [None] * len(self.parameters) if self._accumulate else self._gradients


@dataclass
class _Waiting:
    """Chunks whose backward products are still to be done, one behind the other.

    Attributes:
        gradients: [R, rows], of the logits; the first ``count`` are used.
        hidden_states: [R, H], as the chunks' logits were made from.
        goes_into: for each chunk, where the gradient of its hidden states is wanted.
    """

    gradients: Tensor
    hidden_states: Tensor
    goes_into: list[Tensor]
    count: int = 0

    @classmethod
    def of(cls, weight: Tensor, most: int) -> _Waiting:
        """Room for so many positions of a head [rows, H]."""
        return cls(weight.new_empty(most, weight.shape[0]), weight.new_empty(most, weight.shape[1]), [])

    def has_room(self, positions: int) -> bool:
        """Return whether so many more positions fit."""
        return self.count + positions <= len(self.gradients)

    def add(self, gradient: Tensor, hidden_states: Tensor, into: Tensor) -> None:
        """Take a chunk; both tensors are copied."""
        end = self.count + len(gradient)
        self.gradients[self.count : end] = gradient
        self.hidden_states[self.count : end] = hidden_states
        self.goes_into.append(into)
        self.count = end

    def taken(self) -> tuple[Tensor, Tensor]:
        """Return the waiting tensors: gradients and hidden states."""
        return self.gradients[: self.count], self.hidden_states[: self.count]

    def give(self, hidden_gradient: Tensor) -> None:
        """Hand the gradient of all hidden states [count, H] to where it is wanted; nothing waits any more."""
        for place, part in zip(self.goes_into, hidden_gradient.split([len(p) for p in self.goes_into]), strict=True):
            place.copy_(part)
        self.goes_into, self.count = [], 0


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

    def backward(self, gradient: Tensor, into: Tensor) -> None:
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
        into.copy_(gradients[0])

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
