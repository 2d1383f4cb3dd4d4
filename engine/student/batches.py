"""Micro-batches for the loss, prepared in a thread while the model processes the previous one.

Rows come from the token file, their records from the store by the row's hash: rows and records cannot be mismatched.
This file knows nothing of models.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from engine.machine.torch_device import kind_of
from engine.models.transfer import to_device
from engine.ranks import ALONE, Rank, all_ranks
from engine.student.loss import RecordTensors
from engine.student.order import Order

# Of the mass at the end of an answer, what the label gets. A teacher that was not trained on these conversations, or
# that would have said more, does not end there, and its student would never stop.
END_SHARE = 0.5

if TYPE_CHECKING:
    from engine.cache.record import Records
    from engine.cache.store import CacheStore
    from engine.data.tokens import Split, TokenFile


@dataclass(frozen=True)
class MicroBatch:
    """Rows with the targets of their scored positions.

    Attributes:
        tokens: [rows, length] int64, right-padded.
        positions: [N] int64, places in the flattened [rows * length] hidden states whose next token is scored.
        labels: [N] int64, those next tokens.
        records: the teacher's, at the same N positions.
        documents: [rows, length] int64, the number of each token's document in its row, rising from 0; padding counts
            to the last. None where each row holds one document.
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    records: RecordTensors
    documents: Tensor | None = None

    @classmethod
    def empty(cls) -> MicroBatch:
        """One token, of which nothing is learned: for a rank without rows that has to do a pass with the others."""
        none = torch.zeros(0, dtype=torch.int64)
        numbers = torch.zeros(0)
        records = RecordTensors(none.view(0, 1), numbers.view(0, 1), none, numbers, numbers)
        return cls(torch.zeros(1, 1, dtype=torch.int64), none, none, records)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        if kind_of(device).is_host:
            return self
        records = [getattr(self.records, field.name) for field in fields(self.records)]
        together = [self.tokens, self.positions, self.labels, *records]
        if self.documents is not None:
            together.append(self.documents)
        tokens, positions, labels, *moved = to_device(together, device)
        documents = moved.pop() if self.documents is not None else None
        return MicroBatch(tokens, positions, labels, RecordTensors(*moved), documents)

    def at_positions(self, hidden_states: Tensor) -> Tensor:
        """The hidden states [rows, length, H] at the scored positions, [N, H]."""
        return hidden_states.flatten(0, 1).index_select(0, self.positions)


class Source:
    """Rows with their records. One thread reads at a time: HDF5 files and the store's shards are not thread-safe.

    Where an answer of the training rows ends, half of what is learned is the label: see :data:`END_SHARE`. The records
    of the hold-out are the teacher's alone.
    """

    def __init__(self, tokens: TokenFile, store: CacheStore) -> None:
        self._tokens = tokens
        self._store = store
        self._ends = torch.tensor(sorted(tokens.answer_end_ids), dtype=torch.int64)
        self._lock = threading.Lock()

    @property
    def eos_id(self) -> int | None:
        """The token that ends a document; None where a row is one."""
        return self._tokens.eos_id

    def num_rows(self, split: Split) -> int:
        """Rows in a split."""
        return self._tokens.num_rows(split)

    def num_scored(self, split: Split, indices: Sequence[int]) -> int:
        """Scored tokens in some rows."""
        with self._lock:
            return int(self._tokens.rows(split, indices).scored.sum())

    def micro_batch(self, split: Split, indices: Sequence[int]) -> tuple[MicroBatch, Records]:
        """Return rows as tensors on the CPU, with their records as tensors and in numpy form.

        Raises:
            RecordsMissing: the store has no whole record of a row.
        """
        with self._lock:
            rows = self._tokens.rows(split, indices)
            records = self._store.fetch(rows.hashes)
        tokens = torch.from_numpy(rows.tokens)
        scored = torch.from_numpy(rows.scored)
        # The record of a scored token sits at the position before it: the hidden state there is what predicts it.
        labels_at = scored.flatten().nonzero()[:, 0]
        documents = torch.from_numpy(rows.begins).cumsum(1) - 1 if rows.begins[:, 1:].any() else None
        labels = tokens.flatten()[labels_at]
        learned = RecordTensors.from_records(records)
        if split == "train" and len(self._ends):
            learned = learned.with_labels(labels, torch.isin(labels, self._ends), END_SHARE)
        batch = MicroBatch(tokens, labels_at - 1, labels, learned, documents)
        assert len(batch.labels) == len(batch.records.num_head), "a row has as many records as scored tokens"
        return batch, records


@dataclass(frozen=True)
class StepPart:
    """One micro-batch of a step.

    Attributes:
        batch: the micro-batch; None where a step has fewer rows than there are ranks, and this rank has none.
        num_scored: scored tokens of the *whole* step, which the loss is divided by.
        is_last: whether the step ends with it.
    """

    batch: MicroBatch | None
    num_scored: int
    is_last: bool


class Prefetch:
    """The micro-batches of a run from a step on, prepared ahead by a thread; a context manager that ends the thread.

    Args:
        source: where rows come from.
        order: which rows.
        first_step: counted from 0.
        ahead: maximum number of prepared micro-batches.
        rank: whose share of each step it is.
        even: give each rank as many micro-batches; those that it has no rows for are empty.
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        first_step: int,
        ahead: int = 2,
        rank: Rank = ALONE,
        even: bool = False,
    ) -> None:
        self._rank = rank
        self._even = even
        self._source = source
        self._order = order
        self._first_step = first_step
        self._queue: queue.Queue[StepPart | BaseException | None] = queue.Queue(maxsize=ahead)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    def step(self) -> Iterator[StepPart]:
        """The micro-batches of the next step.

        Raises:
            TinyDistillError, OSError: errors of the thread.
        """
        while True:
            part = self._queue.get()
            if isinstance(part, BaseException):
                raise part
            assert part is not None, "no step is left"
            yield part
            if part.is_last:
                return

    def _work(self) -> None:
        try:
            for part in self._parts():
                if not self._put(part):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, part: StepPart | BaseException | None) -> bool:
        while not self._ending.is_set():
            try:
                self._queue.put(part, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _parts(self) -> Iterator[StepPart]:
        for step in range(self._first_step, self._order.total_steps):
            groups = self._order.micro_batches(step, self._rank)
            # Tokens are read twice where there are several micro-batches: the loss of the first one is already
            # divided by the tokens of all, those of all ranks.
            whole = groups if self._rank == ALONE else self._order.micro_batches(step)
            several = len(whole) > 1 or self._rank != ALONE
            total = sum(self._source.num_scored("train", rows) for rows in whole) if several else None
            most = len(groups)
            if self._even:
                most = max(len(self._order.micro_batches(step, each)) for each in all_ranks(self._rank.world))
            elif not groups:
                assert total is not None, "a step without rows for this rank has rows for others"
                yield StepPart(None, total, is_last=True)
            for index, rows in enumerate(groups):
                batch, _ = self._source.micro_batch("train", rows)
                yield StepPart(batch, len(batch.labels) if total is None else total, index == most - 1)
            for index in range(len(groups), most):
                assert total is not None, "only several ranks are made even"
                yield StepPart(MicroBatch.empty(), total, index == most - 1)
