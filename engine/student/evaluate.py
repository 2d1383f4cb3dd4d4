"""Evaluation of a student on held-out text, against the teacher's records.

Values are summed over chunks of positions; full logits are never allocated. The teacher's values come from its records,
which have its log-probability of each label and its first choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.machine.torch_device import exact
from engine.ranks import ALONE, Rank
from engine.student.batches import MicroBatch, Source
from engine.student.head import FrozenRows, Head, LinearHead, open_head
from engine.student.judge import DocumentSums
from engine.student.learner import Learner
from engine.student.loss import Objective, logits_to_gradient
from engine.student.sliced_loss import sliced_scores
from engine.student.world import ONE_PROCESS, World

if TYPE_CHECKING:
    from engine.cache.record import Records

NUM_BINS = 15


@dataclass(frozen=True)
class Metrics:
    """Metrics of a model on the hold-out; the names are those of the report.

    Attributes:
        holdout_loss: mean cross-entropy to the labels, nats a token.
        perplexity: its exponential.
        kl_to_teacher: mean KL(teacher || model) at the run's temperature, nats a token; unbiased, from the records.
        top1_agreement: share of positions where the model's first choice is the teacher's.
        ece: expected calibration error of the first choice, in 15 bins.
        tokens: scored positions.
        calibration: of each bin with positions: their number, the mean probability of the first choice, and the share
            of positions where the first choice is the label.
    """

    holdout_loss: float
    perplexity: float
    kl_to_teacher: float
    top1_agreement: float
    ece: float
    tokens: int
    calibration: list[list[float]] = field(default_factory=list)

    def as_dict(self) -> dict[str, float]:
        """The figures by name, without the bins of the calibration."""
        return {name: value for name, value in asdict(self).items() if name != "calibration"}


class Calibration:
    """Expected calibration error in equal bins of confidence.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, eq. 3.
    """

    def __init__(self, sums: Tensor | None = None) -> None:
        # Positions, confidence, right ones.
        self.sums = torch.zeros(3, NUM_BINS, dtype=torch.float64) if sums is None else sums

    def add(self, confidence: Tensor, is_right: Tensor) -> None:
        """Count some positions: the probability of the first choice, and whether it was the label."""
        confidence = exact(confidence).cpu()
        bins = (confidence * NUM_BINS).ceil().long().sub_(1).clamp_(0, NUM_BINS - 1)  # (0, 1/15], (1/15, 2/15] …
        for row, values in enumerate((torch.ones_like(confidence), confidence, exact(is_right).cpu())):
            self.sums[row].index_add_(0, bins, values)

    @property
    def error(self) -> float:
        """Mean distance between confidence and accuracy, weighted by the positions in each bin."""
        positions, confidence, right = self.sums
        return float((confidence - right).abs().sum() / positions.sum().clamp(min=1))

    @property
    def bins(self) -> list[list[float]]:
        """Positions, mean confidence and accuracy of each bin that has positions, in rising confidence."""
        return [
            [positions, round(confidence / positions, 6), round(right / positions, 6)]
            for positions, confidence, right in self.sums.T.tolist()
            if positions
        ]


@dataclass(frozen=True)
class HoldoutBatches:
    """The hold-out rows in micro-batches, with their records.

    Attributes:
        source: rows and records.
        micro_batch: rows at a time.
        limit_rows: only this many rows; all if None.
    """

    source: Source
    micro_batch: int
    limit_rows: int | None = None

    @property
    def _starts(self) -> range:
        num_rows = self.source.num_rows("holdout")
        return range(0, num_rows if self.limit_rows is None else min(num_rows, self.limit_rows), self.micro_batch)

    def of(self, rank: Rank = ALONE) -> Iterator[tuple[MicroBatch, Records]]:
        """Yield the micro-batches of a rank."""
        for number, start in enumerate(self._starts):
            if rank.has(number):
                rows = range(start, min(start + self.micro_batch, self._starts.stop))
                yield self.source.micro_batch("holdout", rows)

    def even(self, rank: Rank) -> Iterator[tuple[MicroBatch, Records | None]]:
        """Yield the micro-batches of a rank: each has as many, the last one of some is empty and has no records."""
        yield from self.of(rank)
        if 0 < len(self._starts) % rank.world <= rank.number:
            yield MicroBatch.empty(), None


class _Sums:
    """Sums over the scored positions that were evaluated, by this rank or by all.

    Attributes:
        sums: float64 [3], of cross-entropy, KL and agreements.
        calibration: of the first choices.
        tokens: scored positions.
        positions: the three values of each position, [3, N] of a micro-batch by its number; only where ranks tell each
            other.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)
        self.calibration = Calibration()
        self.tokens = 0
        self.positions: dict[int, Tensor] = {}

    def add(self, found: Tensor) -> None:
        """Count the values of a micro-batch, [3, N]."""
        self.sums += found.sum(1)
        self.tokens += found.shape[1]

    def add_up(self, world: World) -> None:
        """Add what all ranks have, on each of them."""
        told = world.gathered((self.sums, self.calibration.sums, self.tokens, self.positions))
        self.sums = sum((each[0] for each in told), torch.zeros_like(self.sums))
        self.calibration = Calibration(sum((each[1] for each in told), torch.zeros_like(self.calibration.sums)))
        self.tokens = sum(each[2] for each in told)
        self.positions = {number: found for each in told for number, found in each[3].items()}

    @property
    def metrics(self) -> Metrics:
        """The means."""
        loss, kl, agreements = (float(value) / max(1, self.tokens) for value in self.sums)
        return Metrics(
            holdout_loss=loss,
            perplexity=math.exp(min(loss, 700.0)),  # a float ends near exp(709)
            kl_to_teacher=kl,
            top1_agreement=agreements,
            ece=self.calibration.error,
            tokens=self.tokens,
            calibration=self.calibration.bins,
        )


def evaluate(
    learner: Learner,
    holdout: HoldoutBatches,
    *,
    vocab_size: int,
    temperature: float,
    chunk_tokens: int,
    on_batch: Callable[[], None] = lambda: None,
    documents: DocumentSums | None = None,
    world: World = ONE_PROCESS,
) -> Metrics:
    """Measure the student on the hold-out rows; of several ranks each takes some micro-batches.

    Args:
        learner: the student.
        holdout: rows and records.
        vocab_size: V_eff.
        temperature: of the records.
        chunk_tokens: positions whose logits exist at a time.
        on_batch: called after each micro-batch; may raise to stop.
        documents: collects the sums of each document.
        world: the ranks that share the micro-batches; all of them get the result.
    """
    rank = world.rank
    objective = Objective(vocab_size, "unbiased", 1.0, temperature)
    sums = _Sums()
    with learner.evaluating():
        for place, (batch, records, states) in enumerate(_states(learner, holdout.even(rank))):
            if records is not None:  # else another rank has a micro-batch here, and this one none
                first_choices = _first_choices(records).to(learner.device)
                scores = _scores(learner.head, states, batch, objective, chunk_tokens)
                found = _by_position(scores, batch, first_choices, sums.calibration)
                sums.add(found)
                if documents is not None and rank == ALONE:
                    documents.add(batch, *found)
                elif documents is not None:
                    sums.positions[place * rank.world + rank.number] = found
            on_batch()
    if rank != ALONE:
        sums.add_up(world)
        if documents is not None:
            for number, (batch, _) in enumerate(holdout.of()):
                documents.add(batch, *sums.positions[number])
    return sums.metrics


def evaluate_teacher(holdout: HoldoutBatches, *, documents: DocumentSums | None = None) -> Metrics:
    """Return the teacher's metrics on the same rows, from its records; ``documents`` collects each document's sums."""
    sums = _Sums()
    for batch, records in holdout.of():
        assert records.top1_log_prob is not None
        is_right = _first_choices(records) == batch.labels
        sums.calibration.add(torch.from_numpy(records.top1_log_prob).double().exp(), is_right)
        losses = -torch.from_numpy(records.label_log_prob.astype("float64"))
        found = torch.stack([losses, torch.zeros_like(losses), torch.ones_like(losses)])
        sums.add(found)
        if documents is not None:
            documents.add(batch, *found)
    return sums.metrics


def _first_choices(records: Records) -> Tensor:
    """The teacher's first choice at each position, int64 [N]."""
    assert records.top1_id is not None, "hold-out rows are scored with the teacher's first choice"
    return torch.from_numpy(records.top1_id.astype("int64"))


def _by_position(
    scores: Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]],
    batch: MicroBatch,
    first_choices: Tensor,
    calibration: Calibration,
) -> Tensor:
    """Cross-entropy, KL and agreement with the teacher of each position, float64 [3, N] on the CPU."""
    each: list[Tensor] = []
    for part, ce, kl, best_log_prob, choice in scores:
        calibration.add(best_log_prob.exp(), choice == batch.labels[part])
        agrees = choice == first_choices[part]
        each.append(exact(torch.stack([ce, kl, agrees.to(ce.dtype)])).cpu())
    return torch.cat(each, dim=1) if each else torch.zeros(3, 0, dtype=torch.float64)


def _states(
    learner: Learner, holdout: Iterator[tuple[MicroBatch, Records | None]]
) -> Iterator[tuple[MicroBatch, Records | None, Tensor]]:
    """Micro-batches on the device with their hidden states; a streamed student reads its layers once for many."""
    waiting: list[tuple[MicroBatch, Records | None]] = []
    tokens = 0
    for batch, records in holdout:
        waiting.append((batch.to(learner.device), records))
        tokens += batch.tokens.numel()
        if tokens >= learner.at_once:
            yield from _with_states(learner, waiting)
            waiting, tokens = [], 0
    yield from _with_states(learner, waiting)


def _with_states(
    learner: Learner, waiting: list[tuple[MicroBatch, Records | None]]
) -> Iterator[tuple[MicroBatch, Records | None, Tensor]]:
    states = learner.hidden_states_of([batch for batch, _ in waiting])
    for (batch, records), found in zip(waiting, states, strict=True):
        yield batch, records, found


def _scores(
    head: Head, states: Tensor, batch: MicroBatch, objective: Objective, chunk_tokens: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Positions with cross-entropy, KL, log-probability of the first choice, and the first choice."""
    is_mixed = isinstance(head, LinearHead) and head.dtype not in (None, head.weight.dtype)
    if isinstance(head, FrozenRows) or (isinstance(head, LinearHead) and is_mixed):
        # In slices of the vocabulary: a copy of the whole head in the other format is more than a lean step ever holds.
        scores = sliced_scores(states, batch.labels, batch.records, head, objective=objective)
        yield slice(0, len(states)), *scores
        return
    opened = open_head(head, states, objective.vocab_size)
    for start in range(0, len(states), chunk_tokens):
        chunk = slice(start, start + chunk_tokens)
        labels = batch.labels[chunk]
        logits = opened.forward(states[chunk], False)
        best, choice = logits[:, : objective.vocab_size].max(dim=1)
        label_logits = logits.gather(1, labels[:, None])[:, 0]
        ce, kl = logits_to_gradient(logits, labels, batch.records.at(chunk), objective, wants_gradient=False)
        # log p(choice) = choice - logsumexp, and the cross-entropy is logsumexp - label
        yield chunk, ce, kl, best - label_logits - ce, choice
        del logits, best, choice
