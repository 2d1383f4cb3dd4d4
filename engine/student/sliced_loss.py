"""The record loss without a full gradient of the lm_head: by slices of the vocabulary, not chunks of tokens.

The first pass over the slices finds each position's log-sum-exp, and with it the loss. The second makes every slice's
logits again, turns them into their gradient, adds its share to the gradient of the hidden states, and hands the
gradient of the slice's rows of the head on, to be applied and forgotten. That is a third more work in the head, and the
largest tensor is a slice's: [positions, rows] or [rows, H].

The mathematics of the targets is :mod:`engine.student.loss`'s. The two-pass way: Wijmans et al. 2024,
https://arxiv.org/abs/2411.09009, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.machine.products import linear
from engine.machine.torch_device import exact_sum, kind_of
from engine.student.head import FrozenRows, LinearHead, SlicedHead
from engine.student.loss import Objective, RecordTensors, read_for, target_terms

# Large enough for matrix products at full speed, small beside everything else. A GPU pays for each of a slice's some 80
# kernels, whatever its size: slices are larger there.
_LOGITS_BYTES = 4 * 2**20
_GRADIENT_BYTES = 4 * 2**20

OnRows = Callable[[slice, Tensor, Tensor | None], None]
"""Takes some rows of the head: which, the gradient of the weight [rows, H], and that of the bias [rows] or None."""


@dataclass(frozen=True)
class SlicedLoss:
    """The first pass, done; the second is :meth:`backward`.

    Attributes:
        ce_sum, kd_sum: as in :class:`engine.student.loss.LossSums`.
    """

    ce_sum: Tensor
    kd_sum: Tensor
    _hidden_states: Tensor
    _labels: Tensor
    _records: RecordTensors
    _head: SlicedHead
    _objective: Objective
    _label_lse: Tensor
    _kd_lse: Tensor
    _dense: Tensor
    _sparse: Tensor

    @torch.no_grad()
    def backward(self, scale: float, *, want_hidden: bool = True, on_rows: OnRows | None = None) -> Tensor | None:
        """Gradients of ``scale`` times the loss, slice by slice.

        Args:
            scale: factor on the loss.
            want_hidden: whether the gradient of the hidden states is made, [N, H].
            on_rows: takes the gradient of each slice of the head; it may change those rows of the weight at once.
        """
        temperature, kd_weight = self._objective.temperature, self._objective.kd_weight
        ce_factor, kd_factor = scale * (1 - kd_weight), scale * kd_weight * temperature
        hidden = self._hidden_states
        gradient = torch.zeros_like(hidden) if want_hidden else None
        for rows in _slices(self._head, hidden, self._objective.vocab_size):
            weight = self._head.rows(rows).to(hidden.dtype)
            logits = _logits(weight, self._head.bias, hidden, rows)
            matrix = self._probs_times(logits, (kd_factor * self._dense)[:, None], ce_factor)
            _scatter(matrix, rows, self._records.ids, -kd_factor * self._sparse)
            if ce_factor:
                _scatter(matrix, rows, self._labels[:, None], matrix.new_full((len(matrix), 1), -ce_factor))
            matrix = matrix.to(hidden.dtype)
            if gradient is not None:
                gradient.addmm_(matrix, weight)
            if on_rows is not None:
                precise = torch.promote_types(matrix.dtype, torch.float32)
                bias = None if self._head.bias is None else matrix.sum(dim=0, dtype=precise)
                assert isinstance(self._head, LinearHead), "a head on the disk is not trained"
                on_rows(rows, (matrix.T @ hidden).to(self._head.weight.dtype), bias)
        return gradient

    def _probs_times(self, logits: Tensor, kd_rows: Tensor, ce_factor: float) -> Tensor:
        """Both distributions, each times its factor, added up; ``logits`` is overwritten."""
        temperature = self._objective.temperature
        if temperature == 1:
            return logits.sub_(self._label_lse[:, None]).exp_().mul_(kd_rows + ce_factor)
        matrix = logits.div(temperature).sub_(self._kd_lse[:, None]).exp_().mul_(kd_rows)
        return matrix.add_(logits.sub_(self._label_lse[:, None]).exp_(), alpha=ce_factor) if ce_factor else matrix


@torch.no_grad()
def sliced_loss(
    hidden_states: Tensor,
    labels: Tensor,
    records: RecordTensors,
    head: SlicedHead,
    *,
    objective: Objective,
) -> SlicedLoss:
    """The loss of N positions; arguments as for :func:`engine.student.loss.record_loss`."""
    hidden = hidden_states.detach().to(_dtype(head))
    records = read_for(objective.target, records, labels)
    scores = _first_pass(hidden, labels, records, head, objective)
    return SlicedLoss(
        exact_sum(scores.ce),
        exact_sum(scores.kd),
        hidden,
        labels,
        records,
        head,
        objective,
        scores.label_lse,
        scores.kd_lse,
        scores.dense,
        scores.sparse,
    )


@torch.no_grad()
def sliced_scores(
    hidden_states: Tensor,
    labels: Tensor,
    records: RecordTensors,
    head: SlicedHead,
    *,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute an evaluation's values at N positions; arguments as for :func:`engine.student.loss.record_loss`.

    Returns:
        Cross-entropy to the label, KD, the log-probability of the first choice at temperature 1, and the first choice;
        each [N].
    """
    hidden = hidden_states.detach().to(_dtype(head))
    best = _Best(hidden)
    records = read_for(objective.target, records, labels)
    scores = _first_pass(hidden, labels, records, head, objective, best)
    return scores.ce, scores.kd, best.value - scores.label_lse, best.choice


@dataclass(frozen=True)
class _Scores:
    ce: Tensor
    kd: Tensor
    label_lse: Tensor
    kd_lse: Tensor
    dense: Tensor
    sparse: Tensor


def _first_pass(
    hidden: Tensor,
    labels: Tensor,
    records: RecordTensors,
    head: SlicedHead,
    objective: Objective,
    best: _Best | None = None,
) -> _Scores:
    temperature = objective.temperature
    label_sum, kd_sum = _LogSumExp(hidden), _LogSumExp(hidden)
    label_logits = label_sum.zeros(1)
    id_logits = label_sum.zeros(records.ids.shape[1])
    for rows in _slices(head, hidden, objective.vocab_size):
        logits = _logits(head.rows(rows).to(hidden.dtype), head.bias, hidden, rows)
        _gather(logits, rows, labels[:, None], into=label_logits)
        _gather(logits, rows, records.ids, into=id_logits)
        if best is not None:
            best.add(logits, rows)
        if temperature != 1:
            kd_sum.add(logits / temperature)
        label_sum.add(logits)
    label_lse = label_sum.value
    kd_lse = label_lse if temperature == 1 else kd_sum.value
    ce = label_lse - label_logits[:, 0]
    kd, dense, sparse = target_terms(id_logits / temperature - kd_lse[:, None], records, objective.target)
    return _Scores(ce, kd, label_lse, kd_lse, dense, sparse)


class _Best:
    """The largest logit and its id over blocks of columns that come one after the other; the first of equal ones."""

    def __init__(self, hidden: Tensor) -> None:
        self.value = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.promote_types(hidden.dtype, torch.float32))
        self.choice = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)

    def add(self, block: Tensor, rows: slice) -> None:
        """Look through one more block."""
        value, column = block.max(dim=1)
        is_better = value > self.value
        self.value = torch.where(is_better, value, self.value)
        self.choice = torch.where(is_better, column + rows.start, self.choice)


class _LogSumExp:
    """log(sum(exp(x))) over blocks of columns that come one after the other."""

    def __init__(self, hidden: Tensor) -> None:
        self._dtype = torch.promote_types(hidden.dtype, torch.float32)
        self._like = hidden
        self._largest = self.zeros(1)[:, 0].fill_(-torch.inf)
        self._sum = self.zeros(1)[:, 0]

    def zeros(self, columns: int) -> Tensor:
        return self._like.new_zeros(len(self._like), columns, dtype=self._dtype)

    def add(self, block: Tensor) -> None:
        """Take one more block; it is overwritten."""
        largest = torch.maximum(self._largest, block.amax(dim=1))
        self._sum *= torch.exp(self._largest - largest)
        self._sum += block.sub_(largest[:, None]).exp_().sum(dim=1)
        self._largest = largest

    @property
    def value(self) -> Tensor:
        return self._largest + self._sum.log()


def _dtype(head: SlicedHead) -> torch.dtype:
    return head.dtype if isinstance(head, FrozenRows) else head.dtype or head.weight.dtype


def _slices(head: SlicedHead, hidden: Tensor, vocab_size: int) -> Iterator[slice]:
    factor = kind_of(hidden.device).loss_factor
    logits_rows = factor * _LOGITS_BYTES // (4 * max(1, len(hidden)))
    size = max(64, min(logits_rows, factor * _GRADIENT_BYTES // (4 * head.columns)))
    for start in range(0, vocab_size, size):
        yield slice(start, min(start + size, vocab_size))


def _logits(weight: Tensor, bias: Tensor | None, hidden: Tensor, rows: slice) -> Tensor:
    """Logits of a slice whose rows of the weight are given; the bias is whole."""
    bias = None if bias is None else bias.detach()[rows].to(hidden.dtype)
    logits = linear(hidden, weight, bias)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _inside(rows: slice, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Which ids are in the slice, and their columns there (any column for the others)."""
    columns = ids - rows.start
    inside = (columns >= 0) & (columns < rows.stop - rows.start)
    return inside, columns.clamp(0, rows.stop - rows.start - 1)


def _gather(logits: Tensor, rows: slice, ids: Tensor, *, into: Tensor) -> None:
    inside, columns = _inside(rows, ids)
    into.copy_(torch.where(inside, logits.gather(1, columns), into))


def _scatter(matrix: Tensor, rows: slice, ids: Tensor, values: Tensor) -> None:
    inside, columns = _inside(rows, ids)
    matrix.scatter_add_(1, columns, torch.where(inside, values, 0).to(matrix.dtype))
