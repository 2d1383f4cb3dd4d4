"""The student's loss, from hidden states, in chunks: cross-entropy to the label and KD to the record in one pass.

The ``[tokens, vocabulary]`` logits are never allocated. One chunk's logits exist at a time; they become probabilities
*in place*, then the gradient, which passes through the lm_head at once. The gradient is therefore ready at the end of
the forward pass, and apart from the lm_head's gradient nothing of the vocabulary's size is stored for the backward
pass.

This file knows nothing of models, optimizers or files: its inputs are hidden states, an lm_head and records as tensors.

Legend: N positions, C positions in a chunk, H hidden size, V columns of the logits, E = ``vocab_size`` (columns that
stand for a token: the rest are padding), K ids in a record, T temperature, q the student's distribution at T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.machine.torch_device import exact_home, exact_sum
from engine.student.head import Head, HeadPass, open_head

if TYPE_CHECKING:
    from engine.cache.record import Records

Target = Literal["unbiased", "topk", "ghost", "blend"]

# Columns that are powered at a time when T is not 1, so that no second [C, V] matrix is made.
_BLOCK_COLUMNS = 4096


@dataclass(frozen=True)
class RecordTensors:
    """The teacher's records at N positions, as tensors on the student's device.

    Attributes:
        ids: [N, K] int64, the head's ids first.
        weights: [N, K] float32, rows sum to 1; an unbiased estimate of the teacher's distribution at T.
        num_head: [N] int64, how many of the ids are exact.
        tail_mass: [N] float32, the teacher's probability outside the head.
        entropy: [N] float32, of the teacher's whole distribution at T, in nats.
    """

    ids: Tensor
    weights: Tensor
    num_head: Tensor
    tail_mass: Tensor
    entropy: Tensor

    @classmethod
    def from_records(cls, records: Records, device: torch.device | str = "cpu") -> RecordTensors:
        """Convert the parts of numpy records that the loss reads."""
        num_head = torch.from_numpy(records.num_head.astype("int64"))
        tail_mass = torch.from_numpy(records.tail_mass)
        # Where every id is exact there is no tail; what rounding left of its mass is given to the heads in `weights`.
        tail_mass = torch.where(num_head < records.ids.shape[1], tail_mass, 0)
        return cls(
            ids=torch.from_numpy(records.ids.astype("int64")).to(device),
            weights=torch.from_numpy(records.weights()).to(device),
            num_head=num_head.to(device),
            tail_mass=tail_mass.to(device),
            entropy=torch.from_numpy(records.entropy).to(device),
        )

    def at(self, positions: slice) -> RecordTensors:
        """The same for some of the positions; views, no copies."""
        return RecordTensors(*(getattr(self, field.name)[positions] for field in fields(self)))

    def with_labels(self, labels: Tensor, at: Tensor, share: float) -> RecordTensors:
        """Return a copy in which the label has a fixed share of the mass at some positions.

        There every id counts as exact and nothing is outside of them, so that all targets read the same. Where the
        label is not among the ids, it takes the place of the last one.

        Args:
            labels: [N], the tokens that follow.
            at: [N] bool, the positions.
            share: mass that the label gets in addition to the teacher's.
        """
        place = at.nonzero()[:, 0]
        if not len(place):
            return self
        ids, weights, label = self.ids[place], self.weights[place], labels[place, None]
        last = torch.arange(ids.shape[1], device=ids.device) == ids.shape[1] - 1
        is_new = last & ~(ids == label).any(dim=1, keepdim=True)
        ids = torch.where(is_new, label, ids)
        weights = torch.where(is_new, 0, weights)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        is_label = (ids == label).to(weights.dtype)
        is_label = is_label / is_label.sum(dim=1, keepdim=True)
        weights = (1 - share) * weights + share * is_label
        weights = weights / weights.sum(dim=1, keepdim=True)
        return RecordTensors(
            ids=self.ids.index_copy(0, place, ids),
            weights=self.weights.index_copy(0, place, weights),
            num_head=self.num_head.index_fill(0, place, ids.shape[1]),
            tail_mass=self.tail_mass.index_fill(0, place, 0),
            entropy=self.entropy.index_copy(0, place, torch.special.entr(weights).sum(dim=1)),
        )

    def rest_to_label(self, labels: Tensor) -> RecordTensors:
        """Return the exact ids unchanged, and the remaining mass on the label: the target ``blend``.

        Args:
            labels: [N], the tokens that follow.

        Returns:
            Records of K + 1 ids: the last is the label, which may be in the head too. The drawn ids weigh nothing. The
            entropy is that of the new distribution, so that cross-entropy minus entropy is a KL.

        Source: "rest-to-label", Anshumann et al. 2025, https://arxiv.org/abs/2503.16870, section 3.
        """
        is_head = torch.arange(self.ids.shape[1], device=self.ids.device) < self.num_head[:, None]
        head = torch.where(is_head, self.weights, 0)
        rest = (1 - head.sum(dim=1, keepdim=True)).clamp(min=0)
        on_label = rest + torch.where(self.ids == labels[:, None], head, 0).sum(dim=1, keepdim=True)
        others = torch.where(self.ids == labels[:, None], 0, head)
        entropy = torch.special.entr(others).sum(dim=1) + torch.special.entr(on_label)[:, 0]
        return RecordTensors(
            ids=torch.cat([self.ids, labels[:, None]], dim=1),
            weights=torch.cat([head, rest], dim=1),
            num_head=self.num_head,
            tail_mass=self.tail_mass,
            entropy=entropy,
        )


@dataclass(frozen=True)
class Objective:
    """Compute the training loss: ``kd_weight * T^2 * KD + (1 - kd_weight) * CE``.

    Attributes:
        vocab_size: E; logits from this column on are masked out, and their gradient is exactly 0.
        target: what KD reads from a record, see :func:`target_terms`.
        kd_weight: 0 trains on labels only, 1 on the teacher only.
        temperature: T of both distributions in KD; CE is always at 1.
    """

    vocab_size: int
    target: Target = "unbiased"
    kd_weight: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True)
class LossSums:
    """Sums over positions.

    Attributes:
        loss: scalar, differentiable, times the ``scale`` asked for.
        ce_sum: float64 scalar, cross-entropy to the labels at temperature 1.
        kd_sum: float64 scalar, KD at T without the factor T^2; see :func:`target_terms` for what it is a KL of.
    """

    loss: Tensor
    ce_sum: Tensor
    kd_sum: Tensor


def record_loss(
    hidden_states: Tensor,
    labels: Tensor,
    records: RecordTensors,
    head: Head,
    *,
    objective: Objective,
    chunk_tokens: int,
    scale: float = 1.0,
    accumulate: bool = False,
) -> LossSums:
    """The loss of N positions and, where gradients are on, its gradients.

    Extra memory is one ``[chunk_tokens, V]`` float32 matrix, the gradient of the hidden states and the gradient of the
    head's parameters.

    Args:
        hidden_states: the student's last hidden states at the positions, [N, H], any float dtype.
        labels: the tokens that follow, [N] int64, each below ``objective.vocab_size``.
        records: the teacher's records at these positions.
        head: hidden states [C, H] to logits [C, V]: a :class:`~engine.student.head.LinearHead`, or any function.
        objective: what is minimised.
        chunk_tokens: C.
        scale: factor on the loss; a caller that knows the tokens of its effective batch gives their reciprocal.
        accumulate: add the gradient of the head's parameters to their ``.grad`` at once, as ``loss.backward()`` would,
            instead of keeping it for the backward pass: saves a matrix of the head's size. Then nothing may be put
            between this loss and ``backward()``.

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2 (the factor T^2); the chunked gradient in
    the forward pass: Wijmans et al. 2024, https://arxiv.org/abs/2411.09009, and Liger-Kernel's fused linear losses.
    """
    assert hidden_states.shape[:1] == labels.shape == records.num_head.shape
    opened = open_head(head, hidden_states, objective.vocab_size)
    work = _Work(labels, records, opened, objective, chunk_tokens, scale, accumulate, torch.is_grad_enabled())
    return LossSums(*_RecordLoss.apply(hidden_states, work, *opened.parameters))


@dataclass(frozen=True)
class _Work:
    labels: Tensor
    records: RecordTensors
    head: HeadPass
    objective: Objective
    chunk_tokens: int
    scale: float
    accumulate: bool
    grad_enabled: bool  # inside a Function's forward it is always off


class _RecordLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, work: _Work, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        head, objective = work.head, work.objective
        wants_gradient = work.grad_enabled and any(ctx.needs_input_grad)
        hidden_gradient = torch.empty_like(hidden_states) if wants_gradient else None
        if wants_gradient:
            head.begin(work.accumulate)
        ce_sum, kd_sum = (
            torch.zeros((), dtype=torch.float64, device=exact_home(hidden_states.device)) for _ in range(2)
        )
        for chunk in _chunks(len(work.labels), work.chunk_tokens):
            logits_CV = head.forward(hidden_states[chunk].detach(), wants_gradient)
            ce, kd = logits_to_gradient(
                logits_CV, work.labels[chunk], work.records.at(chunk), objective, work.scale, wants_gradient
            )
            ce_sum += exact_sum(ce)
            kd_sum += exact_sum(kd)
            if hidden_gradient is not None:
                head.backward(logits_CV, hidden_gradient[chunk])
            del logits_CV
        if hidden_gradient is not None:
            gradients = head.end()
            ctx.save_for_backward(hidden_gradient, *gradients)
        ctx.mark_non_differentiable(ce_sum, kd_sum)
        loss = blend(ce_sum, kd_sum, objective) * work.scale
        loss = loss.to(torch.promote_types(hidden_states.dtype, torch.float32)).to(hidden_states.device)
        return loss, ce_sum, kd_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, *gradients = (
            None if gradient is None else gradient * upstream for gradient in ctx.saved_tensors
        )
        return (hidden_gradient, None, *gradients)


def blend(ce: Tensor, kd: Tensor, objective: Objective) -> Tensor:
    """Combine the two parts of the loss; a part with weight 0 is left out, so that an infinity in it does no harm."""
    loss = torch.zeros_like(ce)
    if objective.kd_weight < 1:
        loss = loss + (1 - objective.kd_weight) * ce
    if objective.kd_weight > 0:
        loss = loss + objective.kd_weight * objective.temperature**2 * kd
    return loss


def logits_to_gradient(
    logits_CV: Tensor,
    labels: Tensor,
    records: RecordTensors,
    objective: Objective,
    scale: float = 1.0,
    wants_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute the losses of C positions; afterwards ``logits_CV`` is the gradient of the scaled loss (or undefined).

    Args:
        logits_CV: [C, V] float32 or float64, overwritten.
        labels: [C].
        records: of the C positions.
        objective: what is minimised.
        scale: factor on the gradient.
        wants_gradient: False leaves the matrix undefined.

    Returns:
        Cross-entropy to the label and KD, each [C].
    """
    temperature = objective.temperature
    records = read_for(objective.target, records, labels)
    matrix = logits_CV[:, : objective.vocab_size]  # a view: padding takes no part in any sum
    largest = matrix.amax(dim=1, keepdim=True)
    label_logits = (matrix.gather(1, labels[:, None]) - largest)[:, 0]
    id_logits = matrix.gather(1, records.ids) - largest

    # One exp for both temperatures: the flatter distribution is kept, the sharper is a power of it. (The other way
    # round, what the sharper one rounds to zero would be lost to the flatter.)
    flat, power = max(temperature, 1.0), max(temperature, 1.0) / min(temperature, 1.0)
    matrix.sub_(largest)
    if flat != 1:
        matrix.div_(flat)
    matrix.exp_()
    flat_sum = matrix.sum(dim=1)
    sharp_sum = flat_sum if power == 1 else _sum_of_powers(matrix, power)
    label_sum, kd_sum = (sharp_sum, flat_sum) if temperature >= 1 else (flat_sum, sharp_sum)

    ce = label_sum.log() - label_logits
    log_q = id_logits / temperature - kd_sum.log()[:, None]
    kd, dense, sparse = target_terms(log_q, records, objective.target)
    if not wants_gradient:
        return ce, kd

    ce_factor = scale * (1 - objective.kd_weight)
    kd_factor = scale * objective.kd_weight * temperature  # T^2 from the loss, 1/T from the logits' scaling
    ce_rows = (ce_factor / label_sum)[:, None]
    kd_rows = (kd_factor * dense / kd_sum)[:, None]
    flat_rows, sharp_rows = (kd_rows, ce_rows) if temperature >= 1 else (ce_rows, kd_rows)
    _mix(matrix, power, flat_rows, sharp_rows)
    if kd_factor:
        matrix.scatter_add_(1, records.ids, (-kd_factor * sparse).to(matrix.dtype))
    if ce_factor:
        matrix.scatter_add_(1, labels[:, None], matrix.new_full((len(labels), 1), -ce_factor))
    logits_CV[:, objective.vocab_size :] = 0
    return ce, kd


def _mix(flat_CV: Tensor, power: float, flat_rows: Tensor, sharp_rows: Tensor) -> None:
    """Replace a distribution by a mix of itself and its power, with a factor [C, 1] on each."""
    if power == 1:
        flat_CV.mul_(sharp_rows + flat_rows)
        return
    for block in _blocks(flat_CV):
        sharp_block = block.pow(power).mul_(sharp_rows)
        block.mul_(flat_rows).add_(sharp_block)


def read_for(target: Target, records: RecordTensors, labels: Tensor) -> RecordTensors:
    """Return records for :func:`target_terms`: only ``blend`` uses the label."""
    return records.rest_to_label(labels) if target == "blend" else records


def target_terms(log_q: Tensor, records: RecordTensors, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Compute KD at C positions, and its gradient as ``dense * q - sparse`` (with respect to logits / T).

    - ``unbiased``: cross-entropy of the record's weights minus the teacher's entropy. Over the draws of the record its
      mean is KL(teacher || student) of the full distributions; one draw of it may be below 0.
    - ``topk``: KL of the head, renormalised to 1, to the student's whole distribution. Where the teacher was so flat
      that the record has no head, the sampled ids stand in for it, with equal weights.
    - ``ghost``: KL over the head's ids and one class for all the rest. Without a head it is 0 and teaches nothing.
    - ``blend``: KL of the head with the rest of the mass on the label. Without a head it is the label's cross-entropy.

    Args:
        log_q: the student's log-probabilities of the record's ids at T, [C, K].
        records: of the C positions, from :func:`read_for`.
        target: which of the four.

    Returns:
        KD [C], dense [C], sparse [C, K].
    """
    weights = records.weights.to(log_q.dtype)
    if target in ("unbiased", "blend"):
        return _cross_entropy(weights, log_q) - records.entropy, torch.ones_like(log_q[:, 0]), weights

    is_head = torch.arange(log_q.shape[1], device=log_q.device) < records.num_head[:, None]
    if target == "topk":
        kept = torch.where(is_head | (records.num_head == 0)[:, None], weights, 0)
        kept = kept / kept.sum(dim=1, keepdim=True)
        return _cross_entropy(kept, log_q) + kept.xlogy(kept).sum(dim=1), torch.ones_like(log_q[:, 0]), kept

    head_probs = torch.where(is_head, weights, 0)
    rest = records.tail_mass.to(log_q.dtype)
    log_head_q = torch.where(is_head, log_q, -math.inf).logsumexp(dim=1)
    # Rounding may put the head's mass at 1 or above; the rest is then as small as this dtype can tell.
    log_rest_q = torch.log(-torch.expm1(log_head_q.clamp(max=-torch.finfo(log_q.dtype).eps)))
    kd = _cross_entropy(head_probs, log_q) + head_probs.xlogy(head_probs).sum(dim=1)
    kd = kd + rest.xlogy(rest) - rest * log_rest_q
    ratio = rest * torch.exp(-log_rest_q)
    return kd, 1 - ratio, torch.where(is_head, head_probs - log_q.exp() * ratio[:, None], 0)


def _cross_entropy(weights: Tensor, log_q: Tensor) -> Tensor:
    return -torch.where(weights > 0, weights * log_q, 0).sum(dim=1)  # 0 * log 0 is 0


def _sum_of_powers(matrix: Tensor, power: float) -> Tensor:
    return torch.stack([block.pow(power).sum(dim=1) for block in _blocks(matrix)]).sum(dim=0)


def _chunks(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _blocks(matrix: Tensor) -> tuple[Tensor, ...]:
    return torch.split(matrix, _BLOCK_COLUMNS, dim=1)
