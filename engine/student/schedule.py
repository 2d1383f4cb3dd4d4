"""The learning rate of each step: a pure function, so that a resumed run needs no state of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """How the learning rate rises and falls.

    Attributes:
        peak: the largest learning rate.
        total_steps: optimizer steps of the whole run.
        warmup: share of the steps over which it rises: 0 starts at the peak.
        kind: ``cosine`` falls to a tenth of the peak (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983,
            eq. 5), ``linear`` to 0, ``constant`` not at all.
    """

    peak: float
    total_steps: int
    warmup: float = 0.05
    kind: Literal["cosine", "linear", "constant"] = "cosine"

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0; above 0 for each of the ``total_steps``."""
        warmup_steps = math.ceil(self.warmup * self.total_steps)
        if step < warmup_steps:
            return self.peak * (step + 1) / warmup_steps
        # From 1 at the first step after the warm-up to just above 0 at the last: no step is without effect.
        left = (self.total_steps - step) / max(1, self.total_steps - warmup_steps)
        match self.kind:
            case "constant":
                return self.peak
            case "linear":
                return self.peak * max(0.0, left)
            case "cosine":
                return self.peak * (0.1 + 0.9 * (1 - math.cos(math.pi * min(1.0, max(0.0, left)))) / 2)
