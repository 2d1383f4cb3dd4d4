"""A student whose frozen base is on the disk: its layers are read for each step, forward and backward.

All micro-batches of a step go through a layer before the next one is read, as the teacher's do
(:mod:`engine.models.streaming.wave`). Each layer's inputs are kept, its inside is not: on the way back the layer is
read again, its inside is computed again from its inputs, and its adapters get their gradients. So a step reads each
layer twice, whatever its number of micro-batches, and memory holds two layers and one hidden state for each token and
layer.

The model's own code does all the work. It is used here only where a layer takes the hidden states that the one before
it returned, and no gradient flows into a layer but through these; this is checked as the layers run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ModelError, RequestError
from engine.machine.products import linear
from engine.models.borders import cut, positions_in, takes_positions
from engine.models.core import differ_by_rounding_only
from engine.models.packed import can_be_cut
from engine.models.selfcheck import layers_to_check
from engine.models.streaming.teacher import StreamedTeacher
from engine.models.streaming.wave import place_at_work, run_wave
from engine.student.batches import MicroBatch, StepPart
from engine.student.generate import lengthened
from engine.student.head import FrozenRows
from engine.student.learner import Learner
from engine.student.trainable import Trainable

_REMEDY = "Leave out --student_layer_by_layer for this student."
_TOLERANCE = {torch.float32: 1e-5}
_HALF_TOLERANCE = 2e-2


@dataclass
class _Border:
    """One micro-batch in front of one layer: the arguments of the layer's forward, hidden states among them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden_states(self) -> Tensor:
        found = self.args[0] if self.args else self.kwargs["hidden_states"]
        assert isinstance(found, Tensor)
        return found

    def call(self, forward: Callable[..., Any], hidden_states: Tensor) -> Any:
        """The layer's forward with other hidden states."""
        if self.args:
            return forward(hidden_states, *self.args[1:], **self.kwargs)
        return forward(**{**self.kwargs, "hidden_states": hidden_states})


@dataclass
class _Pass:
    """A wave's borders.

    Attributes:
        borders: for each micro-batch, those of all layers.
        last: for each micro-batch, what the last layer returned.
        is_tuple: for each layer, whether it returns more than hidden states, and what comes behind them.
    """

    borders: list[list[_Border]]
    last: list[Tensor] = field(default_factory=list)
    behind: dict[int, tuple[Any, ...] | None] = field(default_factory=dict)


class StreamedLearner(Learner):
    """A :class:`~engine.student.learner.Learner` whose layers are read from the disk.

    Args:
        base: the frozen model.
        dtype: of the matrix products; the base's own.
        trainable: makes what is trained, from the base's model.
        wave_tokens: tokens that are evaluated at a time.

    Raises:
        ModelError: the model cannot be trained in this way.
    """

    def __init__(
        self,
        base: StreamedTeacher,
        *,
        dtype: torch.dtype,
        trainable: Trainable,
        wave_tokens: int,
    ) -> None:
        self.model = base.model
        self.trainable = trainable
        self.device = base.device
        self.dtype = dtype
        self.tied = False  # the head is frozen: nothing is added up
        self._base = base
        self._wave_tokens = wave_tokens
        self._checkpointing = True
        self.model.config.use_cache = False
        self.head = _head_of(base)
        self._can_be_cut: bool | None = None

    @property
    def can_be_cut(self) -> bool:
        """See :class:`~engine.student.learner.Learner`."""
        if self._can_be_cut is None:
            with self._base.resident(layers_to_check(self._base.layers)):
                self._can_be_cut = can_be_cut(self.model, self.device)
        return self._can_be_cut

    @property
    def at_once(self) -> int:
        """See :class:`~engine.student.learner.Learner`."""
        return self._wave_tokens

    def save_memory(self, on: bool) -> str:
        """See :class:`~engine.student.learner.Learner`."""
        return self._base.save_memory(on)

    def hidden_states(self, batch: MicroBatch) -> Tensor:
        """See :class:`~engine.student.learner.Learner`; without gradient."""
        return self.hidden_states_of([batch])[0]

    def hidden_states_of(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """See :class:`~engine.student.learner.Learner`; without gradient, the layers are read once for all of them."""
        if not batches:
            return []
        self._check(batches)
        states = self._wave(batches, as_numbers=None)
        return [batch.at_positions(found) for batch, found in zip(batches, states, strict=True)]

    def growing_rows(self) -> Callable[[Tensor], Tensor]:
        """See :class:`~engine.student.learner.Learner`; each call reads all layers."""

        def last(ids: Tensor) -> Tensor:
            with self._autocast():
                return self._base.last_hidden_states([lengthened(ids)])[0][:, ids.shape[1] - 1]

        return last

    def backward(self, parts: Iterable[StepPart], gradient: Callable[[StepPart, MicroBatch, Tensor], Tensor]) -> None:
        """See :class:`~engine.student.learner.Learner`."""
        held, batches = [], []
        for part in parts:
            if part.batch is not None:
                held.append(part)
                batches.append(part.batch.to(self.device))
        if not batches:
            return  # a rank without rows reads no layer
        layers = self._base.layers
        self._check(batches)
        with _recording(layers, len(batches)) as passed:
            self._wave(batches, as_numbers=True)
        self._base.forget_head()
        gradients = [
            self._into_last(passed, place, part, batch, gradient)
            for place, (part, batch) in enumerate(zip(held, batches, strict=True))
        ]
        for index in self._base.arrivals(range(len(layers) - 1, -1, -1)):
            for place in range(len(batches)):
                border = passed.borders[place].pop()
                gradients[place] = self._through(layers[index], border, gradients[place])

    def _wave(self, batches: Sequence[MicroBatch], *, as_numbers: bool | None) -> list[Tensor]:
        base, core = self._base, self._base.core
        given = [self._given(batch) for batch in batches]
        base.forget_head()
        with self._autocast(), self._cutting(lambda: batches[place_at_work()].documents, batches, as_numbers):
            return run_wave(
                core.core,
                core.layers,
                [batch.tokens for batch in batches],
                base.arrivals(range(len(core.layers))),
                store=base.store,
                given=given,
            )

    def _check(self, batches: Sequence[MicroBatch]) -> None:
        if all(batch.documents is None for batch in batches) or self.can_be_cut:
            return
        raise RequestError(
            f"{type(self.model).__name__} cannot be cut between the documents of a row.",
            "A streamed student would need a pass over its layers for each document.",
            "Use --no_packing, or leave out --student_layer_by_layer.",
        )

    def _given(self, batch: MicroBatch) -> dict[str, Any]:
        if batch.documents is None or not takes_positions(self._base.core.core):
            return {}
        return {"position_ids": positions_in(batch.documents)}

    def _cutting(
        self, documents: Callable[[], Tensor | None], batches: Sequence[MicroBatch], as_numbers: bool | None
    ) -> contextlib.AbstractContextManager[None]:
        if all(batch.documents is None for batch in batches):
            return contextlib.nullcontext()
        return cut(documents, as_numbers=as_numbers)

    def _into_last(
        self,
        passed: _Pass,
        place: int,
        part: StepPart,
        batch: MicroBatch,
        gradient: Callable[[StepPart, MicroBatch, Tensor], Tensor],
    ) -> Tensor:
        """The gradient of what the last layer returned: through the final norm, from the loss."""
        leaf = passed.last[place].detach().requires_grad_()
        with torch.enable_grad(), self._autocast(), _passing(self._base.layers, leaf, passed.behind):
            with self._cutting(lambda: batch.documents, [batch], True):
                output = self._base.core.core(input_ids=batch.tokens, use_cache=False, **self._given(batch))
            states = batch.at_positions(output[0])
        states.backward(gradient(part, batch, states))
        assert leaf.grad is not None
        return leaf.grad

    def _through(self, layer: nn.Module, border: _Border, gradient: Tensor) -> Tensor:
        """The gradient of a layer's input; the layer's adapters get theirs."""
        leaf = border.hidden_states.detach().requires_grad_()
        with torch.enable_grad(), self._autocast():
            output = border.call(layer.forward, leaf)
        (output if isinstance(output, Tensor) else output[0]).backward(gradient)
        assert leaf.grad is not None
        return leaf.grad


def _head_of(base: StreamedTeacher) -> FrozenRows:
    matrix = base.head_matrix()
    head = base.model.get_output_embeddings()
    if matrix is not None and isinstance(head, nn.Linear) and _is_plain(base, head):
        return FrozenRows(matrix, head.bias, base.logits)
    raise ModelError(
        f"The head of {type(base.model).__name__} is more than a matrix product.",
        "A streamed student's loss is computed in slices of the vocabulary, which needs a plain head.",
        _REMEDY,
    )


@torch.no_grad()
def _is_plain(base: StreamedTeacher, head: nn.Linear) -> bool:
    """As :func:`engine.models.core.head_is_linear`, with the first rows of the matrix."""
    matrix = base.head_matrix()
    assert matrix is not None
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-2, 3, steps=6)[:, None]
    probes = (torch.randn((6, matrix.shape[1]), generator=generator) * sizes).to(base.device, matrix.dtype)
    rows = slice(0, min(1024, matrix.shape[0]))
    bias = None if head.bias is None else head.bias[rows]
    plain = linear(probes, matrix.rows(rows), bias).float()
    own = base.logits(probes)
    base.forget_head()
    tolerance = _TOLERANCE.get(matrix.dtype, _HALF_TOLERANCE)
    return own.shape[1] == matrix.shape[0] and differ_by_rounding_only(own[:, rows], plain, tolerance)


@contextlib.contextmanager
def _recording(layers: nn.ModuleList, count: int) -> Iterator[_Pass]:
    """While this is open, the layers keep what they are given by the micro-batches of a wave."""
    passed = _Pass([[] for _ in range(count)], [torch.empty(0)] * count)
    returned: list[Tensor | None] = [None] * count
    forwards = [layer.forward for layer in layers]

    def recording(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            place = place_at_work()
            border = _Border(args, kwargs)
            before = border.hidden_states
            if index and before is not returned[place]:
                raise ModelError(
                    f"Something is computed between the layers {index - 1} and {index} of the student.",
                    "Its gradient would be lost where layers are read one by one.",
                    _REMEDY,
                )
            version = before._version
            output = forward(*args, **kwargs)
            found = output if isinstance(output, Tensor) else output[0]
            if before._version != version:
                raise ModelError(
                    f"Layer {index} of the student overwrites its input.",
                    "It could not be computed again on the way back.",
                    _REMEDY,
                )
            passed.borders[place].append(border)
            passed.last[place] = returned[place] = found
            passed.behind[index] = None if isinstance(output, Tensor) else tuple(output[1:])
            return output

        return run

    for index, layer in enumerate(layers):
        layer.forward = recording(index, layer.forward)
    try:
        yield passed
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward


@contextlib.contextmanager
def _passing(layers: nn.ModuleList, last: Tensor, behind: dict[int, tuple[Any, ...] | None]) -> Iterator[None]:
    """While this is open, the layers compute nothing, and the last one returns ``last``."""
    forwards = [layer.forward for layer in layers]

    def passing(index: int) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            found = last if index == len(layers) - 1 else _Border(args, kwargs).hidden_states
            more = behind[index]
            return found if more is None else (found, *more)

        return run

    for index, layer in enumerate(layers):
        layer.forward = passing(index)
    try:
        yield
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward
