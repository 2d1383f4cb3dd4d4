"""A series of measurements that never grows: at most 300 buckets, each with its lowest and highest value.

Buckets hold equally many samples; when there are too many, neighbours are merged and the size doubles. Spikes survive,
and the result depends only on the samples, not on how they were cut into calls: a screen that came back shows the same
curve as one that stayed. Pure: it knows nothing of events or screens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_BUCKETS = 300


class Bucket(NamedTuple):
    """Samples that follow each other, in one.

    Attributes:
        worked: seconds worked on the run until the first sample.
        step: of the first sample; 0 where there are none.
        low, high, last: smallest, largest and newest value.
    """

    worked: float
    step: float
    low: float
    high: float
    last: float


@dataclass(frozen=True)
class Series:
    """The buckets so far; the last one may still be filling.

    Attributes:
        buckets: oldest first.
        size: samples in a whole bucket.
        filled: samples in the last bucket.
        count: samples in all.
    """

    buckets: tuple[Bucket, ...] = field(default=())
    size: int = 1
    filled: int = 0
    count: int = 0

    def extended(self, samples: Iterable[tuple[float, float, float]]) -> Series:
        """A series with more samples, each ``(worked, step, value)``."""
        buckets, size, filled, count = list(self.buckets), self.size, self.filled, self.count
        for worked, step, value in samples:
            count += 1
            if buckets and filled < size:
                old = buckets[-1]
                buckets[-1] = Bucket(old.worked, old.step, min(old.low, value), max(old.high, value), value)
                filled += 1
                continue
            if len(buckets) == MAX_BUCKETS:
                buckets = [_merged(a, b) for a, b in zip(buckets[::2], buckets[1::2], strict=True)]
                size *= 2
            buckets.append(Bucket(worked, step, value, value, value))
            filled = 1
        return Series(tuple(buckets), size, filled, count)

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self.buckets[-1].last if self.buckets else None


def _merged(first: Bucket, second: Bucket) -> Bucket:
    return Bucket(first.worked, first.step, min(first.low, second.low), max(first.high, second.high), second.last)
