"""The order in which the student reads the rows: fixed by the seed, the same after any number of restarts.

The epochs, each in its own order, form one endless sequence of rows. An optimizer step takes the next rows, so the
number of finished steps is the complete position of a run. ``micro_batch`` does not affect the order, so a run that
runs out of memory continues with smaller micro-batches of the same steps.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.ranks import ALONE, Rank


@dataclass(frozen=True)
class Order:
    """Which rows each step and each micro-batch takes.

    Attributes:
        num_rows: rows of training data.
        micro_batch: rows that go through the model at a time.
        gradient_accumulation: micro-batches in a step.
        total_rows: rows read over the whole run, all epochs together; the last step takes what is left.
        seed: of the order.
    """

    num_rows: int
    micro_batch: int
    gradient_accumulation: int
    total_rows: int
    seed: int

    @classmethod
    def plan(
        cls,
        *,
        num_rows: int,
        micro_batch: int,
        gradient_accumulation: int,
        seed: int,
        epochs: int | None = None,
        steps: int | None = None,
    ) -> Order:
        """An order over so many epochs (1 when neither is given), or so many steps."""
        total = steps * micro_batch * gradient_accumulation if steps is not None else (epochs or 1) * num_rows
        return cls(num_rows, micro_batch, gradient_accumulation, total, seed)

    @property
    def effective_batch(self) -> int:
        """Rows in an optimizer step."""
        return self.micro_batch * self.gradient_accumulation

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return math.ceil(self.total_rows / self.effective_batch)

    def micro_batches(self, step: int, rank: Rank = ALONE) -> list[list[int]]:
        """The rows of a step, counted from 0, micro-batch by micro-batch; of several ranks each has its share."""
        first = step * self.effective_batch
        rows = min(self.effective_batch, self.total_rows - first)
        first, last = (first + rows * number // rank.world for number in (rank.number, rank.number + 1))
        return [
            self._rows(start, min(start + self.micro_batch, last)) for start in range(first, last, self.micro_batch)
        ]

    def _rows(self, first: int, last: int) -> list[int]:
        return [
            int(_epoch_order(self.num_rows, self.seed, place // self.num_rows)[place % self.num_rows])
            for place in range(first, last)
        ]


@functools.lru_cache(maxsize=2)  # a step may reach from one epoch into the next
def _epoch_order(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    # A raw Philox stream is promised to stay the same in every release of numpy; `permutation` is not (NEP 19).
    keys = np.random.Philox(key=[seed, epoch]).random_raw(num_rows)
    return np.argsort(keys, kind="stable")
