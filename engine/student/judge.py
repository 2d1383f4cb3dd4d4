"""Statistics of a student's evaluation: against chance, by document, and per byte of text.

*Chance* is a model that only knows each token's frequency in the training text. Metrics vary with the documents of the
hold-out: the bootstrap resamples documents, with the same draws for all models, and gives their confidence intervals.
Knows nothing of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.student.verdict import FEWEST_DOCUMENTS, gap_closed

if TYPE_CHECKING:
    from engine.data.tokens import TokenFile
    from engine.student.batches import MicroBatch, Source

# Tokens that the unigram model is made from at most; more would not move it.
_MOST_TOKENS = 4_000_000
_ROWS_AT_A_TIME = 64
_SMOOTHING = tuple(10.0**power for power in (-4, -3, -2, -1.5, -1, -0.5, 0))

# More documents than these are put together with their neighbours: what is kept in a checkpoint stays small.
_MOST_DOCUMENTS = 1_000
_DRAWS = 1_000
COLUMNS = ("tokens", "loss", "kl", "agreements")
"""Of the sums for each document: scored positions, cross-entropy and KL in nats, agreements of the first choice."""


@dataclass(frozen=True)
class Unigram:
    """Token frequencies as a model.

    Attributes:
        log_probs: float64 [vocab_size], natural logarithms.
        tokens: it was counted on.
    """

    log_probs: NDArray[np.float64]
    tokens: int

    @classmethod
    def of(cls, tokens: TokenFile) -> Unigram:
        """Count the labels of the training rows; of a long text evenly spread ones.

        Unseen tokens get the smoothing with which each token is best predicted from all others.
        """
        num_rows = tokens.num_rows("train")
        wanted = min(num_rows, max(1, _MOST_TOKENS // tokens.sequence_length))
        picked = [place * num_rows // wanted for place in range(wanted)]
        counts = np.zeros(tokens.vocab_size, np.int64)
        for start in range(0, len(picked), _ROWS_AT_A_TIME):
            rows = tokens.rows("train", picked[start : start + _ROWS_AT_A_TIME])
            counts += np.bincount(rows.tokens[rows.scored], minlength=tokens.vocab_size)
        return cls.from_counts(counts)

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64]) -> Unigram:
        """Additive smoothing by the share, of a few, under which each token is likeliest when it is left out."""
        total, seen = int(counts.sum()), counts[counts > 0].astype(np.float64)

        def left_out(share: float) -> float:
            rest = total - 1 + share * len(counts)
            return float((seen * np.log((seen - 1 + share) / rest)).sum()) if rest > 0 else -math.inf

        share = max(_SMOOTHING, key=left_out) if total > 1 else 1.0
        return cls(np.log((counts + share) / (total + share * len(counts))), total)


class DocumentSums:
    """Sums over the scored positions of each hold-out document, independent of the micro-batches.

    Rows come in their order. A document ends with the end-of-text token; where the tokenizer has none, a row is one.
    """

    def __init__(self, eos_id: int | None) -> None:
        self._eos_id = eos_id
        self._offset = 0
        self._documents: list[NDArray[np.int64]] = []
        self._sums: list[NDArray[np.float64]] = []

    def add(self, batch: MicroBatch, loss: Tensor, kl: Tensor, agreements: Tensor) -> None:
        """Count the scored positions of some rows, [N] each."""
        tokens = batch.tokens.cpu()
        if self._eos_id is None:
            ended = torch.arange(len(tokens)).repeat_interleave(tokens.shape[1])
            after = len(tokens)
        else:
            ended = (tokens.flatten() == self._eos_id).cumsum(0)
            after = int(ended[-1]) if len(ended) else 0
        # A label is at the place after its position: what has ended up to the position is before it.
        documents = (self._offset + ended[batch.positions.cpu()]).numpy()
        self._offset += after
        values = torch.stack([torch.ones(len(loss)), *(part.cpu() for part in (loss, kl, agreements))], 1).double()
        numbers, place = np.unique(documents, return_inverse=True)
        sums = np.zeros((len(numbers), len(COLUMNS)))
        np.add.at(sums, place, values.numpy())
        self._documents.append(numbers)
        self._sums.append(sums)

    def table(self) -> NDArray[np.float64]:
        """Float64 [documents, 4], the columns of :data:`COLUMNS`; above 1,000 documents neighbours share a row."""
        if not self._documents:
            return np.zeros((0, len(COLUMNS)))
        numbers, place = np.unique(np.concatenate(self._documents), return_inverse=True)
        groups = min(len(numbers), _MOST_DOCUMENTS)
        sums = np.zeros((groups, len(COLUMNS)))
        np.add.at(sums, place * groups // len(numbers), np.concatenate(self._sums))
        return sums


def chance_sums(source: Source, unigram: Unigram, *, micro_batch: int, eos_id: int | None) -> NDArray[np.float64]:
    """The unigram model on the hold-out, as :meth:`DocumentSums.table`; its KL and agreements are not taken: zeros."""
    documents = DocumentSums(eos_id)
    log_probs = torch.from_numpy(unigram.log_probs)
    num_rows = source.num_rows("holdout")
    for start in range(0, num_rows, micro_batch):
        batch, _ = source.micro_batch("holdout", range(start, min(start + micro_batch, num_rows)))
        nothing = torch.zeros(len(batch.labels))
        documents.add(batch, -log_probs[batch.labels], nothing, nothing)
    return documents.table()


def intervals(tables: dict[str, NDArray[np.float64]], *, seed: int) -> dict[str, list[float]]:
    """95 % intervals of the student's figures, by a bootstrap over documents; empty below six documents.

    Args:
        tables: of ``teacher``, ``before``, ``after`` and ``chance``, as :meth:`DocumentSums.table`: the same documents.
        seed: of the draws.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (the percentile interval).
    """
    count = len(tables["after"])
    if count < FEWEST_DOCUMENTS or any(len(table) != count for table in tables.values()):
        return {}
    draws = resampled(count, seed)
    means: dict[str, Any] = {}
    for name, table in tables.items():
        sums = draws @ table
        means[name] = sums[:, 1:] / np.maximum(sums[:, :1], 1)
    after = means["after"]
    losses = (means[name][:, 0] for name in ("teacher", "before", "chance"))
    closed = [
        gap_closed(float(teacher), float(before), float(chance), float(own))
        for teacher, before, chance, own in zip(*losses, after[:, 0], strict=True)
    ]
    found = {
        "holdout_loss": after[:, 0],
        "kl_to_teacher": after[:, 1],
        "top1_agreement": after[:, 2],
        "loss_beyond_teacher": after[:, 0] - means["teacher"][:, 0],
    }
    told = {name: middle(values) for name, values in found.items()}
    known = [share for share in closed if share is not None]
    return told | ({"gap_closed": middle(known)} if len(known) == len(closed) else {})


def resampled(count: int, seed: int) -> NDArray[np.int64]:
    """Draw the bootstrap's samples of ``count`` documents: how often each has every document, int64 [draws, count]."""
    return np.random.Generator(np.random.Philox(seed)).multinomial(count, np.full(count, 1 / count), size=_DRAWS)


def middle(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Return the ends of the middle 95 % of some values."""
    low, high = np.quantile(np.asarray(values), (0.025, 0.975))
    return [float(low), float(high)]


def bits_per_byte(loss: float, tokens: int, num_bytes: int) -> float | None:
    """Convert nats per token to bits per byte of the text, which are comparable between tokenizers."""
    return loss * tokens / (math.log(2) * num_bytes) if num_bytes else None
