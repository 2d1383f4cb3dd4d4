"""How much there is to do: rows of text, the effective batch, epochs, steps, the learning rate.

Pure arithmetic on amounts; memory is the business of recommend.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

# An optimizer step over 8k to 16k tokens is what small models are distilled with; fewer where the text is short, so
# that there are enough steps to learn in.
MOST_TOKENS_PER_STEP, FEWEST_TOKENS_PER_STEP = 16_384, 2_048
WANTED_STEPS = 200
MOST_ROWS_PER_STEP, FEWEST_ROWS_PER_STEP = 64, 4
MOST_EPOCHS = 10
# What prepare keeps out at most and, where there is enough text, at least (engine.data.prepare has the same numbers).
MOST_HOLDOUT_ROWS, FEWEST_HOLDOUT_ROWS = 512, 16
DEFAULT_LENGTH = 512
# Rows that even a short text should give, before the rows are made shorter.
_WANTED_ROWS = 64

# Peak learning rates of AdamW by parameters: Pythia's at 70M (Biderman et al. 2023, https://arxiv.org/abs/2304.01373)
# lowered as is usual for weights that are trained already, the more the larger the model.
_RATES = ((3e6, 1e-3), (7e7, 3e-4), (5e8, 8e-5), (2e9, 3e-5), (1e10, 1e-5))


@dataclass(frozen=True)
class Text:
    """The amount of text.

    Attributes:
        tokens: of all documents; None while it is not known.
        holdout: share kept out of training.
        samples: most rows to train on; None for all.
    """

    tokens: int | None
    holdout: float
    samples: int | None

    def train_rows(self, length: int) -> int | None:
        """Rows of ``length`` tokens to train on."""
        if self.tokens is None:
            return self.samples
        rows = max(1, math.ceil(self.tokens * (1 - self.holdout) / length))
        return min(rows, self.samples or rows)

    def train_tokens(self, length: int) -> int | None:
        """Tokens to train on, at rows of ``length``."""
        rows = self.train_rows(length)
        if rows is None:
            return None
        return rows * length if self.tokens is None else min(rows * length, int(self.tokens * (1 - self.holdout)) or 1)

    def holdout_tokens(self, length: int) -> int:
        """Tokens kept out: of a text of which only samples are taken, the same share of these; within bounds."""
        train = self.train_tokens(length)
        if train is None:
            return FEWEST_HOLDOUT_ROWS * length
        return min(MOST_HOLDOUT_ROWS * length, int(train * self.holdout / (1 - self.holdout)))

    def all_tokens(self, length: int) -> int:
        """Tokens that the teacher reads."""
        return (self.train_tokens(length) or 0) + self.holdout_tokens(length)


def default_length(tokens: int | None, limit: int | None) -> tuple[int, str]:
    """A row's length and why: 512, shorter where the text or the models ask for it."""
    length, reason = DEFAULT_LENGTH, f"{DEFAULT_LENGTH} tokens see enough context for most text"
    if tokens is not None and tokens < _WANTED_ROWS * length:
        length = max(64, 2 ** int(math.log2(max(64, tokens / _WANTED_ROWS))))
        reason = f"short rows, because there are only about {tokens:,} tokens"
    if limit is not None and limit < length:
        return limit, f"the models take no more than {limit}"
    return length, reason


def effective_rows(text: Text, length: int) -> tuple[int, str]:
    """Rows in one optimizer step, a power of two, and why."""
    tokens = text.train_tokens(length)
    wanted = MOST_TOKENS_PER_STEP
    if tokens is not None:
        wanted = min(MOST_TOKENS_PER_STEP, max(FEWEST_TOKENS_PER_STEP, tokens // WANTED_STEPS))
    rows = min(MOST_ROWS_PER_STEP, max(FEWEST_ROWS_PER_STEP, 2 ** int(math.log2(max(1, wanted / length)))))
    return rows, f"{rows} rows, {rows * length:,} tokens a step"


def epochs_for(steps_per_epoch: int | None) -> tuple[int, str]:
    """How often the text is read, and why."""
    if steps_per_epoch is None or steps_per_epoch >= WANTED_STEPS:
        return 1, "one reading gives enough steps" if steps_per_epoch else "once"
    epochs = min(MOST_EPOCHS, math.ceil(WANTED_STEPS / steps_per_epoch))
    return epochs, f"one reading is only {steps_per_epoch} steps; {epochs * steps_per_epoch} teach more"


def learning_rate_for(parameters: int) -> float:
    """The usual peak learning rate for a model of this size: between the table's entries on a line in logarithms."""
    (smallest, first), (_, last) = _RATES[0], _RATES[-1]
    if parameters <= smallest:
        return first
    for (low, low_rate), (high, high_rate) in itertools.pairwise(_RATES):
        if parameters <= high:
            share = math.log(parameters / low) / math.log(high / low)
            rate = low_rate * (high_rate / low_rate) ** share
            return float(f"{rate:.1e}")
    return last


def checkpoint_every(step_seconds: float, checkpoint_bytes: int, write_rate: float, total_steps: int | None) -> int:
    """Steps between checkpoints: about a minute's work, and at least twenty times what writing one takes."""
    seconds = max(60.0, 20 * checkpoint_bytes / write_rate)
    every = max(1, min(1000, round(seconds / max(step_seconds, 1e-4))))
    if every > 10:
        every = int(float(f"{every:.1g}"))  # a round number is easier to find in a folder
    return every if total_steps is None else max(1, min(every, total_steps))
