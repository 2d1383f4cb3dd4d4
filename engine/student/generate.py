"""A few lines of text from a model, so that a user can read what the numbers say.

It knows no model: it asks a function for the next token's logits. The same seed draws from teacher and student alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.data.sample_limits import SampleLimits

if TYPE_CHECKING:
    from engine.data.tokens import TokenFile

_TEMPERATURE = 0.7


# Rows are lengthened to a multiple of this: a product in half precision compiles a kernel for each shape it meets and
# keeps it (measured: 220 MB after 32 lengths of a model of 70M parameters).
_LENGTH_STEP = 16
# Layers and head take longer for two or three rows in float32 than for four (SmolLM2: 200 ms a token for three, 130 for
# four).
_ROWS_STEP = 4
# Enough tokens for a rate, and the most that they may take.
_SPEED_TOKENS, _SPEED_SECONDS = 8, 2.0
_MOST_ROWS_TRIED = 64  # of one part of the hold-out, for a row in which a text begins


def holdout_prompts(tokens: TokenFile, *, count: int = 3, length: int = 16) -> list[list[int]]:
    """Return the beginnings of some hold-out documents as prompts, evenly spaced over the rows.

    Each comes from the first row of its part of the rows in which a text begins. Of a text it is the first ``length``
    tokens, or half of them where it is short. Of a conversation it is everything up to where the first answer that is
    learned begins.
    """
    num_rows = tokens.num_rows("holdout")
    borders = sorted({number * num_rows // count for number in range(count + 1)})
    parts = [range(start, end) for start, end in itertools.pairwise(borders)]
    picked = [
        next((row for row in part[:_MOST_ROWS_TRIED] if _has_a_beginning(tokens, row)), part[0]) for part in parts
    ]
    prompts = (_prompt(tokens, row, length) for row in picked)
    return [prompt for prompt in prompts if prompt]


def _has_a_beginning(tokens: TokenFile, row: int) -> bool:
    """Whether a text begins in a row: a long text's later rows hold its middle alone, often from within a word."""
    rows = tokens.rows("holdout", [row])
    first_half = rows.begins[0, 1 : int(rows.lengths[0]) // 2 + 1]  # behind it there is little left to take a prompt of
    return bool(first_half.any()) or not _goes_on(tokens, row)


def _prompt(tokens: TokenFile, row: int, length: int) -> list[int]:
    rows = tokens.rows("holdout", [row])
    ids, scored = rows.tokens[0, : rows.lengths[0]], rows.scored[0, : rows.lengths[0]]
    borders = [*np.flatnonzero(rows.begins[0]).tolist(), len(ids)]
    pieces = [(start, end) for start, end in itertools.pairwise(borders) if scored[start:end].any()]
    if not pieces:
        return []
    if len(pieces) > 1 and pieces[0][0] == 0 and _goes_on(tokens, row):
        pieces = pieces[1:]
    # Among texts the longest; a conversation is recognised by what stands before its answer.
    is_chat = [not scored[start + 1 : end].all() for start, end in pieces]
    start, end = pieces[is_chat.index(True)] if any(is_chat) else max(pieces, key=lambda piece: piece[1] - piece[0])
    answer = start + int(scored[start:end].argmax())
    is_text = not any(is_chat)
    found: list[int] = ids[start : start + min(length, max(1, (end - start) // 2)) if is_text else answer].tolist()
    return found


def _goes_on(tokens: TokenFile, row: int) -> bool:
    """Return whether a row begins with the rest of a text that the row before it did not hold."""
    if row == 0 or tokens.eos_id is None:
        return False
    before = tokens.rows("holdout", [row - 1])
    return int(before.tokens[0, before.lengths[0] - 1]) != tokens.eos_id


def lengthened(ids: Tensor) -> Tensor:
    """Ids [rows, length] with zeros on the right up to a multiple of 16; what is before them does not see them."""
    return torch.nn.functional.pad(ids, (0, -ids.shape[1] % _LENGTH_STEP))


def continuations(
    next_logits: Callable[[Tensor], Tensor],
    prompts: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    end_ids: Collection[int],
    seed: int,
    max_new_tokens: int = SampleLimits.tokens,
    max_seconds: float = SampleLimits.seconds,
) -> list[list[int]]:
    """Continue each prompt by sampling at a temperature of 0.7.

    Prompts of one length form a batch. Every token runs the whole row again, unless ``next_logits`` caches the earlier
    tokens (:class:`engine.models.cached.GrowingRows`).

    Args:
        next_logits: ids [rows, length] to logits of the next token [rows, V].
        prompts: token ids.
        vocab_size: V_eff; ids beyond it are never sampled.
        end_ids: any of them ends a text.
        seed: of the draws.
        max_new_tokens: maximum number of new tokens.
        max_seconds: for all of them; no further token of a prompt is begun when its share of it is over.

    Returns:
        The new ids of each prompt, up to the end of its text and with the token that ends it, if one of the limits did
        not come first.
    """
    found: list[list[int]] = [[] for _ in prompts]
    lengths = list(dict.fromkeys(map(len, prompts)))
    for number, length in enumerate(lengths):
        alike = [place for place, prompt in enumerate(prompts) if len(prompt) == length]
        new = _drawn(
            next_logits,
            torch.tensor([list(prompts[place]) for place in alike], dtype=torch.int64),
            vocab_size=vocab_size,
            end_ids=end_ids,
            generator=torch.Generator().manual_seed((seed + number) % 2**63),
            max_new_tokens=max_new_tokens,
            max_seconds=max_seconds / len(lengths),
        )
        for place, ids in zip(alike, new, strict=True):
            end = next((number for number, token in enumerate(ids) if token in end_ids), len(ids))
            found[place] = ids[: end + 1]
    return found


def writing_speed(next_logits: Callable[[Tensor], Tensor], prompt: Sequence[int], *, vocab_size: int) -> float:
    """Tokens a second at which a model continues one prompt, as in a talk. The pass over the prompt does not count."""
    ids, began, written = torch.tensor([list(prompt)], dtype=torch.int64), 0.0, 0
    with torch.no_grad():
        for written in range(_SPEED_TOKENS + 1):
            token = next_logits(ids)[:, :vocab_size].argmax(dim=1, keepdim=True).cpu()
            ids = torch.cat([ids, token], dim=1)
            began = began or time.monotonic()
            if written and time.monotonic() - began > _SPEED_SECONDS:
                break
    return written / max(time.monotonic() - began, 1e-9)


def _drawn(
    next_logits: Callable[[Tensor], Tensor],
    ids: Tensor,
    *,
    vocab_size: int,
    end_ids: Collection[int],
    generator: torch.Generator,
    max_new_tokens: int,
    max_seconds: float,
) -> list[list[int]]:
    """New ids of rows [rows, length], until each has come to an end or one of the limits is reached."""
    length, began, rows = ids.shape[1], time.monotonic(), len(ids)
    filled = torch.arange(-(-rows // _ROWS_STEP) * _ROWS_STEP if rows > 1 else 1).clamp_max(rows - 1)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            probs = (next_logits(ids[filled])[:rows, :vocab_size].float().cpu() / _TEMPERATURE).softmax(dim=1)
            if not probs.isfinite().all():
                break
            ids = torch.cat([ids, torch.multinomial(probs, 1, generator=generator)], dim=1)
            is_over = all(set(row) & set(end_ids) for row in ids[:, length:].tolist())
            if is_over or time.monotonic() - began > max_seconds:
                break
    new: list[list[int]] = ids[:, length:].tolist()
    return new
