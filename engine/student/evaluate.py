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
from engine.student.world import World

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


def evaluate(
    learner: Learner,
    source: Source,
    *,
    vocab_size: int,
    temperature: float,
    micro_batch: int,
    chunk_tokens: int,
    limit_rows: int | None = None,
    on_batch: Callable[[], None] = lambda: None,
    documents: DocumentSums | None = None,
    world: World | None = None,
) -> Metrics:
    """Measure the student on the hold-out rows; of several ranks each takes some micro-batches.

    Args:
        learner: the student.
        source: rows and records.
        vocab_size: V_eff.
        temperature: of the records.
        micro_batch: rows at a time.
        chunk_tokens: positions whose logits exist at a time.
        limit_rows: evaluate only this many rows; all if None.
        on_batch: called after each micro-batch; may raise to stop.
        documents: collects the sums of each document.
        world: the ranks that share the micro-batches; all of them get the result.
    """
    rank = ALONE if world is None else world.rank
    objective = Objective(vocab_size, "unbiased", 1.0, temperature)
    sums = torch.zeros(3, dtype=torch.float64)  # cross-entropy, KL, agreements
    positions: dict[int, Tensor] = {}  # of each position of a micro-batch, where ranks tell each other
    calibration = Calibration()
    tokens = 0
    with learner.evaluating():
        mine = _states(learner, _share(source, micro_batch, limit_rows, world))
        for place, (batch, records, states) in enumerate(mine):
            if records is None:  # another rank has a micro-batch here, and this one none
                on_batch()
                continue
            assert records.top1_id is not None, "hold-out rows are scored with the teacher's first choice"
            top1_ids = torch.from_numpy(records.top1_id.astype("int64")).to(learner.device)
            each: list[Tensor] = []
            for part, ce, kl, best_log_prob, choice in _scores(learner.head, states, batch, objective, chunk_tokens):
                calibration.add(best_log_prob.exp(), choice == batch.labels[part])
                agrees = choice == top1_ids[part]
                each.append(exact(torch.stack([ce, kl, agrees.to(ce.dtype)])).cpu())
            found = torch.cat(each, dim=1) if each else torch.zeros(3, 0, dtype=torch.float64)
            sums += found.sum(1)
            if documents is not None and world is None:
                documents.add(batch, *found)
            elif documents is not None:
                positions[place * rank.world + rank.number] = found
            tokens += len(states)
            on_batch()
    if world is not None:
        told = world.gathered((sums, calibration.sums, tokens, positions))
        sums = sum((each[0] for each in told), torch.zeros_like(sums))
        calibration = Calibration(sum((each[1] for each in told), torch.zeros_like(calibration.sums)))
        tokens = sum(each[2] for each in told)
        if documents is not None:
            of_all = {number: found for each in told for number, found in each[3].items()}
            for number, (batch, _) in enumerate(_holdout(source, micro_batch, limit_rows)):
                documents.add(batch, *of_all[number])
    return _metrics(sums, calibration, tokens)


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


def evaluate_teacher(
    source: Source, *, micro_batch: int, limit_rows: int | None = None, documents: DocumentSums | None = None
) -> Metrics:
    """Return the teacher's metrics on the same rows, from its records; ``documents`` collects each document's sums."""
    calibration = Calibration()
    loss, tokens = 0.0, 0
    for batch, records in _holdout(source, micro_batch, limit_rows):
        assert records.top1_id is not None, "hold-out rows are scored with the teacher's first choice"
        assert records.top1_log_prob is not None
        loss -= float(records.label_log_prob.astype("float64").sum())
        is_right = torch.from_numpy(records.top1_id.astype("int64")) == batch.labels
        calibration.add(torch.from_numpy(records.top1_log_prob).double().exp(), is_right)
        tokens += len(batch.labels)
        if documents is not None:
            losses = -torch.from_numpy(records.label_log_prob.astype("float64"))
            documents.add(batch, losses, torch.zeros_like(losses), torch.ones_like(losses))
    return _metrics(torch.tensor([loss, 0.0, float(tokens)], dtype=torch.float64), calibration, tokens)


def _share(
    source: Source, micro_batch: int, limit_rows: int | None, world: World | None
) -> Iterator[tuple[MicroBatch, Records | None]]:
    """Yield the micro-batches of a rank: each has as many, the last one of some is empty and has no records."""
    rank = ALONE if world is None else world.rank
    yield from _holdout(source, micro_batch, limit_rows, rank)
    total = len(_starts(source, micro_batch, limit_rows))
    if total % rank.world > rank.number or total % rank.world == 0:
        return
    yield MicroBatch.empty(), None


def _starts(source: Source, micro_batch: int, limit_rows: int | None) -> range:
    num_rows = source.num_rows("holdout")
    return range(0, num_rows if limit_rows is None else min(num_rows, limit_rows), micro_batch)


def _holdout(
    source: Source, micro_batch: int, limit_rows: int | None, rank: Rank = ALONE
) -> Iterator[tuple[MicroBatch, Records]]:
    """Yield the micro-batches of a rank."""
    starts = _starts(source, micro_batch, limit_rows)
    for number, start in enumerate(starts):
        if rank.has(number):
            yield source.micro_batch("holdout", range(start, min(start + micro_batch, starts.stop)))


def _metrics(sums: Tensor, calibration: Calibration, tokens: int) -> Metrics:
    loss, kl, agreements = (float(value) / max(1, tokens) for value in sums)
    return Metrics(
        holdout_loss=loss,
        perplexity=math.exp(min(loss, 700.0)),  # a float ends near exp(709)
        kl_to_teacher=kl,
        top1_agreement=agreements,
        ece=calibration.error,
        tokens=tokens,
        calibration=calibration.bins,
    )
