"""An optimizer step without a full gradient: each tensor's gradient is applied and freed as soon as it is computed.

It works without accumulation only, as freed gradients cannot be added up. Hooks update the layers' parameters during
the backward pass; the embedding's gradient has only the rows of the micro-batch's tokens; the lm_head is updated in
slices of the vocabulary. The rest of a step's memory is the largest layer's gradient.

A tied head is updated once a step, after the backward pass, when both of its gradients are known.

Clipping by the norm of the whole gradient is not possible, as it is never known: see :class:`RunningNorms`. With
that, and with embedding rows that only move when they are read, the demo's student has a hold-out loss of 3.952 after
60 steps, against 3.946 the usual way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.machine.torch_device import kind_of
from engine.student.batches import StepPart
from engine.student.head import LinearHead
from engine.student.learner import Learner
from engine.student.optimizer import AdamW
from engine.student.sliced_loss import sliced_loss
from engine.student.step import StepResult, StepSettings, blended

_MEMORY = 0.9


class RunningNorms:
    """Clipping without the whole gradient: every tensor gets its usual share of ``clip_norm``.

    The norms of earlier steps give each tensor's share of the whole norm. In a steady run this equals clipping by the
    whole norm; a sudden large gradient is clipped tensor by tensor. The first step has no earlier norms and is not
    clipped: Adam's first update does not depend on the gradient's size.

    Args:
        clip_norm: largest norm of the whole gradient; 0 never clips.
        norms: from a checkpoint; goes into the next one.
    """

    def __init__(self, clip_norm: float, norms: dict[str, float]) -> None:
        self._clip_norm = clip_norm
        self._norms = norms
        self._total = math.sqrt(sum(norm**2 for norm in norms.values()))
        self._seen: list[tuple[str, float | Tensor]] = []
        self.is_finite = True

    def factor(self, name: str, norm: float | Tensor | None = None) -> float | Tensor:
        """Return the clipping factor of a gradient; the usual norm is used if its norm is not known yet.

        On a GPU it stays there as a scalar: reading it would make the CPU wait for each tensor's gradient.
        """
        usual = self._norms.get(name)
        if not self._clip_norm or usual is None or self._total == 0.0:
            return 1.0
        share = self._clip_norm * usual / self._total
        if isinstance(norm, Tensor) and not kind_of(norm.device).is_host:
            precise = norm.double() if kind_of(norm.device).has_float64 else norm
            return (share / precise.clamp_min(1e-12)).clamp_max(1.0)
        return min(1.0, share / max(usual if norm is None else float(norm), 1e-12))

    def saw(self, name: str, norm: float | Tensor) -> None:
        """A gradient's norm in this step, a number or a scalar; slices of one tensor are added up."""
        self._seen.append((name, norm))

    def finish(self) -> float:
        """End the step: store the norms, and return the norm of the whole gradient."""
        seen: dict[str, float] = {}
        for name, norm in self._on_the_cpu():
            seen[name] = math.hypot(seen.get(name, 0.0), norm)
            self.is_finite &= math.isfinite(norm)
        for name, norm in seen.items():
            if math.isfinite(norm):
                before = self._norms.get(name)
                self._norms[name] = norm if before is None else _MEMORY * before + (1 - _MEMORY) * norm
        return math.sqrt(sum(norm**2 for norm in seen.values()))

    def _on_the_cpu(self) -> list[tuple[str, float]]:
        """Return all norms as numbers, with one transfer from the GPU."""
        scalars = [norm for _, norm in self._seen if isinstance(norm, Tensor)]
        values = iter(torch.stack(scalars).tolist() if scalars else [])
        return [(name, next(values) if isinstance(norm, Tensor) else norm) for name, norm in self._seen]


def can_be_lean(learner: Learner) -> bool:
    """Return whether this student's lm_head is a plain matrix; only such a head can be updated in slices."""
    return isinstance(learner.head, LinearHead)


def lean_step(
    learner: Learner, parts: Iterable[StepPart], optimizer: AdamW, settings: StepSettings, norms: RunningNorms
) -> StepResult:
    """Do one step of one micro-batch; arguments and result as for :func:`engine.student.step.train_step`.

    ``norms`` clips the gradients; no other clipping, and no scale of the loss, is used.
    A NaN or infinite loss changes nothing. A NaN or infinite gradient leaves its tensor unchanged, and the step counts
    as bad.
    """
    (part,) = parts
    assert isinstance(learner.head, LinearHead), "see can_be_lean"
    assert part.batch is not None, "several ranks make whole gradients"
    batch = part.batch.to(learner.device)
    scale = 1.0 / max(1, part.num_scored)
    # The row of the padding token has a gradient too; :class:`_Update` leaves it out.
    with learner.sparse_embedding(with_padding=True):
        states = learner.hidden_states(batch)
    loss = sliced_loss(states, batch.labels, batch.records, learner.head, objective=settings.objective)
    ce, kd = (value * scale for value in torch.stack([loss.ce_sum, loss.kd_sum]).tolist())
    value = blended(ce, kd, settings.objective)
    is_usable = math.isfinite(value) and value <= settings.exploded_above
    if not is_usable or not part.num_scored:
        return StepResult(value, ce, kd, 0.0, part.num_scored, False, not is_usable)

    settings.before_update()
    optimizer.begin_step(settings.learning_rate)
    update = _Update(learner.head, learner.tied, optimizer, norms, _Embedding.of(learner, part.batch.tokens))
    gradient = loss.backward(scale, on_rows=None if learner.tied else update.head_rows)
    assert gradient is not None
    with update.in_backward():
        states.backward(gradient.to(states.dtype))
    if learner.tied:
        loss.backward(scale, want_hidden=False, on_rows=update.head_rows)
    update.head_bias()
    norm = norms.finish()
    return StepResult(value, ce, kd, norm, part.num_scored, True, not norms.is_finite)


class _Update:
    """Applies gradients as they come."""

    def __init__(
        self, head: LinearHead, tied: bool, optimizer: AdamW, norms: RunningNorms, embedding: _Embedding
    ) -> None:
        self._optimizer = optimizer
        self._norms = norms
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in optimizer.parameters.items()}
        self._weight, self._bias = head.weight, head.bias
        self._bias_gradient = None if head.bias is None else torch.zeros_like(head.bias)
        self._tied = tied
        self._embedding = embedding
        self._from_embedding: tuple[Tensor, Tensor, Tensor] | None = None

    @contextmanager
    def in_backward(self) -> Iterator[None]:
        """While this is open, a backward pass updates every parameter that it reaches."""
        hooks = [parameter.register_post_accumulate_grad_hook(self._take) for parameter in self._names]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def head_rows(self, rows: slice, gradient: Tensor, bias_gradient: Tensor | None) -> None:
        """Some rows of the head; where it is tied, what the embedding's own rows got is added."""
        if bias_gradient is not None and self._bias_gradient is not None:
            self._bias_gradient[rows] = bias_gradient.to(self._bias_gradient.dtype)
        if self._weight not in self._names:
            return
        if self._from_embedding is not None:
            ids, values, ids_here = self._from_embedding
            begin, end = torch.searchsorted(ids_here, torch.tensor([rows.start, rows.stop])).tolist()
            gradient.index_add_(0, ids[begin:end] - rows.start, values[begin:end].to(gradient.dtype))
        self._apply(self._weight, gradient, rows, self._norms.factor(self._names[self._weight]))

    def head_bias(self) -> None:
        """The head's bias, when all of its rows are there."""
        if self._bias is not None and self._bias in self._names and self._bias_gradient is not None:
            self._apply(self._bias, self._bias_gradient)

    def _take(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        parameter.grad = None
        rows = rows_here = None
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, gradient = gradient.indices()[0], gradient.values()
            rows_here = rows.cpu()  # rising; what is cut at a place that the CPU knows needs no more questions
        elif parameter is self._embedding.weight and self._embedding.read is not None:
            rows_here = self._embedding.read
            rows = rows_here.to(gradient.device)
            gradient = gradient.index_select(0, rows)
        padding = self._embedding.padding if parameter is self._embedding.weight else None
        if padding is not None and rows_here is None:
            gradient[padding] = 0.0
        elif padding is not None and rows is not None and rows_here is not None:
            place = int(torch.searchsorted(rows_here, padding))
            if place < len(rows_here) and rows_here[place] == padding:
                rows, rows_here, gradient = (
                    torch.cat([part[:place], part[place + 1 :]]) for part in (rows, rows_here, gradient)
                )
        if self._tied and parameter is self._weight:
            if rows is None or rows_here is None:
                rows, rows_here = torch.arange(len(gradient), device=gradient.device), torch.arange(len(gradient))
            self._from_embedding = (rows, gradient, rows_here)
        else:
            self._apply(parameter, gradient, rows)

    def _apply(
        self,
        parameter: Tensor,
        gradient: Tensor,
        rows: slice | Tensor | None = None,
        factor: float | Tensor | None = None,
    ) -> None:
        name = self._names[parameter]
        norm = torch.linalg.vector_norm(gradient)
        self._norms.saw(name, norm)
        skip: Tensor | None = None
        if not kind_of(norm.device).is_host:
            skip = torch.isfinite(norm).logical_not().float()  # the kernel looks, and the CPU need not wait
        elif not torch.isfinite(norm):
            return
        factor = self._norms.factor(name, norm) if factor is None else factor
        is_one = isinstance(factor, float) and factor == 1.0
        gradient = gradient if is_one else gradient.mul_(factor)
        if skip is None:
            self._optimizer.update(name, gradient, rows)
        else:
            self._optimizer.update(name, gradient, rows, skip=skip)


@dataclass(frozen=True)
class _Embedding:
    """Properties of the embedding that a step needs.

    Attributes:
        weight: its matrix; None where it is none.
        padding: the row that is never trained, where it has one.
        read: rows that the step reads, rising, on the CPU, where the device has no sparse gradients: the gradient is
            whole there for a moment, and these rows are taken from it.
    """

    weight: Tensor | None = None
    padding: int | None = None
    read: Tensor | None = None

    @classmethod
    def of(cls, learner: Learner, tokens: Tensor) -> _Embedding:
        """That of a student, for a step with these tokens on the CPU."""
        embedding = learner.model.get_input_embeddings()
        if not isinstance(embedding, nn.Embedding):
            return cls()
        read = None if kind_of(learner.device).has_sparse else tokens.unique()
        return cls(embedding.weight, embedding.padding_idx, read)
