"""A few lines of text from a model, so that a person can read what the numbers say.

It knows no model: it asks a function for the next token's logits. The same seed draws from teacher and student alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from engine.data.tokens import TokenFile

_TEMPERATURE = 0.7
# Rows are lengthened to a multiple of this: a product in half precision compiles a kernel for each shape it meets and
# keeps it (measured: 220 MB after 32 lengths of a model of 70M parameters).
_LENGTH_STEP = 16


def holdout_prompts(tokens: TokenFile, *, count: int = 3, length: int = 16) -> list[list[int]]:
    """The beginnings of some hold-out documents, evenly spread; all of one length, fewer where the text is short.

    Of each row that is picked it is the longest document.
    """
    num_rows = tokens.num_rows("holdout")
    picked = sorted({number * num_rows // count for number in range(count)}) if num_rows else []
    documents = [_longest_document(tokens, row) for row in picked]
    if not documents:
        return []
    length = min(length, max(1, max(map(len, documents)) // 2))
    return [document[:length] for document in documents if len(document) >= length]


def _longest_document(tokens: TokenFile, row: int) -> list[int]:
    rows = tokens.rows("holdout", [row])
    borders = np.append(np.flatnonzero(rows.begins[0]), rows.lengths[0])
    longest = int(np.diff(borders).argmax())
    found: list[int] = rows.tokens[0, borders[longest] : borders[longest + 1]].tolist()
    return found


def lengthened(ids: Tensor) -> Tensor:
    """Ids [rows, length] with zeros on the right up to a multiple of 16; what is before them does not see them."""
    return torch.nn.functional.pad(ids, (0, -ids.shape[1] % _LENGTH_STEP))


def continuations(
    next_logits: Callable[[Tensor], Tensor],
    prompts: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    eos_id: int | None,
    seed: int,
    max_new_tokens: int = 32,
    max_seconds: float = 8.0,
) -> list[list[int]]:
    """Go on with each prompt by drawing token after token at a temperature of 0.7.

    ``next_logits`` is given the whole row each time: a streamed model runs it again, others keep what they computed
    (:class:`engine.models.cached.GrowingRows`).

    Args:
        next_logits: ids [rows, length] to logits of the next token [rows, V].
        prompts: token ids, all of one length.
        vocab_size: V_eff; what lies beyond is never drawn.
        eos_id: ends a text.
        seed: of the draws.
        max_new_tokens: most tokens that are added.
        max_seconds: no further token is begun after so long.

    Returns:
        The new ids of each prompt, up to the end of its text.
    """
    if not prompts:
        return []
    generator = torch.Generator().manual_seed(seed % 2**63)
    ids = torch.tensor([list(prompt) for prompt in prompts], dtype=torch.int64)
    began = time.monotonic()
    with torch.no_grad():
        for _ in range(max_new_tokens):
            probs = (next_logits(ids)[:, :vocab_size].float().cpu() / _TEMPERATURE).softmax(dim=1)
            if not probs.isfinite().all():
                break
            ids = torch.cat([ids, torch.multinomial(probs, 1, generator=generator)], dim=1)
            if time.monotonic() - began > max_seconds:
                break
    new = ids[:, len(prompts[0]) :].tolist()
    return [row[: row.index(eos_id)] if eos_id in row else row for row in new]
