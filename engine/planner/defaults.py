"""Defaults of a training, with reasons: row length, effective batch, epochs, learning rate, checkpoints, evaluations.

Pure arithmetic on amounts of text and seconds; recommend.py searches the settings that memory decides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from engine.format import format_count
from engine.planner.workload import Text

# An optimizer step over 8k to 16k tokens is what small models are distilled with; fewer where the text is short, so
# that there are enough steps to learn in.
MOST_TOKENS_PER_STEP, FEWEST_TOKENS_PER_STEP = 16_384, 2_048
WANTED_STEPS = 200
MOST_ROWS_PER_STEP, FEWEST_ROWS_PER_STEP = 64, 4
MOST_EPOCHS = 10
DEFAULT_LENGTH = 512
# Conversations that a row should hold whole.
_WHOLE_SHARE = 0.97
# Rows that even a short text should give, before the rows are made shorter.
_WANTED_ROWS = 64

# Peak learning rates of AdamW by parameters: Pythia's at 70M (Biderman et al. 2023, https://arxiv.org/abs/2304.01373)
# lowered as is usual for weights that are trained already, the more the larger the model.
_RATES = ((3e6, 1e-3), (7e7, 3e-4), (5e8, 8e-5), (2e9, 3e-5), (1e10, 1e-5))


def default_length(text: Text, limit: int | None) -> tuple[int, str]:
    """A row's length and why: 512, shorter where the text or the models ask for it, longer for long conversations."""
    length, reason = DEFAULT_LENGTH, "enough context for most text"
    if text.tokens is not None and text.tokens < _WANTED_ROWS * length:
        length = max(64, 2 ** int(math.log2(max(64, text.tokens / _WANTED_ROWS))))
        reason = f"short rows, because there are only about {text.tokens:,} tokens"
    if text.conversations:
        length = max(length, _holds(text.conversations, _WHOLE_SHARE))
        length = length if limit is None else min(length, limit)
        return length, whole_told(text, length, limit)
    if limit is not None and limit < length:
        return limit, f"the models take no more than {limit}"
    return length, reason


def whole_told(text: Text, length: int, limit: int | None = None) -> str:
    """How many of the conversations a row of ``length`` holds whole."""
    share, longest = text.share_whole(length), max(text.conversations)
    if share == 1:
        return f"every conversation fits into a row whole; the longest of {len(text.conversations):,} has {longest:,}"
    why = f"; the models take no more than {limit}" if limit is not None and length == limit else ""
    return f"{100 * share:.0f} % of the conversations fit into a row; the others are cut{why}"


def _holds(lengths: Sequence[int], share: float) -> int:
    """A row's length, a multiple of 64, that holds this share of the documents whole."""
    ordered = sorted(lengths)
    wanted = ordered[min(len(ordered), math.ceil(share * len(ordered))) - 1]
    return 64 * math.ceil(wanted / 64)


def effective_rows(text: Text, length: int) -> tuple[int, str]:
    """Rows in one optimizer step, a power of two, and why."""
    tokens = text.train_tokens(length)
    wanted = MOST_TOKENS_PER_STEP
    if tokens is not None:
        wanted = min(MOST_TOKENS_PER_STEP, max(FEWEST_TOKENS_PER_STEP, tokens // WANTED_STEPS))
    rows = min(MOST_ROWS_PER_STEP, max(FEWEST_ROWS_PER_STEP, 2 ** int(math.log2(max(1, wanted / length)))))
    return rows, f"{rows:,} rows, {rows * length:,} tokens a step"


def epochs_for(steps_per_epoch: int | None) -> tuple[int, str]:
    """How often the text is read, and why."""
    if steps_per_epoch is None or steps_per_epoch >= WANTED_STEPS:
        return 1, "one epoch has enough steps" if steps_per_epoch else "once"
    epochs = min(MOST_EPOCHS, math.ceil(WANTED_STEPS / steps_per_epoch))
    return epochs, f"one epoch is only {steps_per_epoch} steps; {epochs * steps_per_epoch} steps teach more"


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


# A rule of thumb for what is a beginning: the demo's student reads one token for each 20 of its parameters, twice, and
# answers as its teacher in two thirds of the places.
_PARAMETERS_FOR_A_TOKEN = 100


def too_little_text(tokens: int, parameters: int) -> str | None:
    """Return a warning for a text that is small for a student, in numbers; None if it is large enough.

    Args:
        tokens: scored tokens to train on.
        parameters: of the student.
    """
    wanted = parameters // _PARAMETERS_FOR_A_TOKEN
    if not tokens or tokens >= wanted:
        return None
    return (
        f"{tokens:,} tokens are few for {format_count(parameters)} parameters: expect this text's style only. "
        f"Use at least about {format_count(wanted)} tokens."
    )


def checkpoint_every(step_seconds: float, checkpoint_bytes: int, write_rate: float, total_steps: int | None) -> int:
    """Steps between checkpoints: about a minute's work, and at least twenty times what writing one takes."""
    seconds = max(60.0, 20 * checkpoint_bytes / write_rate)
    every = max(1, min(1000, round(seconds / max(step_seconds, 1e-4))))
    if every > 10:
        every = int(float(f"{every:.1g}"))  # a round number is easier to find in a folder
    return every if total_steps is None else max(1, min(every, total_steps))


MOST_EVALUATIONS = 5
"""Looks at the hold-out text during a training, where they cost next to nothing."""
EVALUATION_ROWS = 64
"""Rows of the hold-out at each of them; before and after the training all of it counts."""
_EVALUATIONS_SHARE = 0.04


def evaluations_for(total_steps: int | None, step_seconds: float, look_seconds: float) -> int:
    """Looks during a training, the last one at its end: as many as take a twenty-fifth of its time, and at most five.

    The best student is kept at a look, so the number is planned: found out on the way, it would make another student on
    a machine that is busy.

    Args:
        total_steps: optimizer steps; None where the amount of text is not known.
        step_seconds: of one of them.
        look_seconds: of an evaluation with the checkpoint after it.
    """
    if total_steps is None:
        return MOST_EVALUATIONS
    affordable = int(_EVALUATIONS_SHARE * total_steps * step_seconds / max(look_seconds, 1e-6))
    return max(1, min(MOST_EVALUATIONS, affordable, total_steps))
