"""Estimate of the amount of text in tokens, cached for some seconds while a form is filled in.

Of plain text it is made without a tokenizer. Of conversations some are counted with the models' own, because a template
may write as much as the user did.
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from engine.data.chat_lengths import conversation_lengths
from engine.data.survey import CHARACTERS_PER_TOKEN, Survey, survey
from engine.errors import ModelError
from engine.format import format_count
from engine.model_files.hub import resolve_model
from engine.model_files.vocabulary import read_vocabulary
from engine.settings.config import RunConfig

# A form asks for a plan on each key; the text behind it is looked at again after so many seconds.
_KEPT_SECONDS = 30
# The vocabulary that the usual number of characters a token belongs to.
_USUAL_VOCABULARY = 50_000


@dataclass(frozen=True)
class Amount:
    """How much text there is.

    Attributes:
        tokens: of all documents; None where they cannot be estimated.
        told: the source of the number, as text.
        lengths: tokens of some conversations with their chat template, of those that the template takes; empty for
            plain text.
    """

    tokens: int | None
    told: str
    lengths: tuple[int, ...] = ()


def count_tokens(data: str, config: RunConfig, teacher: str, vocab_size: int) -> Amount:
    """Tokens of the text: of conversations as the teacher's template and tokenizer have them, else an estimate.

    Raises:
        DataError: there is no text, or none that can be used.
    """
    moment = int(time.monotonic() / _KEPT_SECONDS)
    found = _look(data, config.text_field, config.data_split, moment)
    if found.characters is None:
        return Amount(None, "the amount of text is not known before it is read")
    tokens = round(found.characters / characters_per_token(vocab_size))
    if found.conversations and found.documents is not None:
        lengths = _lengths(str(resolve_model(teacher)), data, config.text_field, config.data_split, moment)
        taken = tuple(length for length in lengths if isinstance(length, int))
        if taken:
            tokens = max(1, round(found.documents * sum(taken) / len(lengths)))
            told = f"about {format_count(tokens)} tokens of conversations, the chat template included"
            if len(taken) < len(lengths):
                told += f" (it refuses {len(lengths) - len(taken):,} of {len(lengths):,} that were looked at)"
            return Amount(tokens, told, taken)
    return Amount(tokens, f"about {format_count(tokens)} tokens of text")


def look(data: str, config: RunConfig) -> Survey:
    """Return a quick survey of the text, cached for some seconds.

    Raises:
        DataError: there is no text, or none that can be used.
    """
    moment = int(time.monotonic() / _KEPT_SECONDS)
    found = _look(data, config.text_field, config.data_split, moment)
    lost = found.left_out
    if lost is None or config.teacher is None or len(found.conversations) != found.documents:
        return found
    lengths = _lengths(str(resolve_model(config.teacher)), data, config.text_field, config.data_split, moment)
    refused = Counter(length for length in lengths if isinstance(length, str))
    return replace(found, left_out=replace(lost, lost={**lost.lost, **refused})) if refused else found


def characters_per_token(vocab_size: int) -> float:
    """Characters of English in a token: one of a small vocabulary carries fewer bits, so it stands for less text."""
    share = math.log(max(2, vocab_size)) / math.log(_USUAL_VOCABULARY)
    return max(1.0, CHARACTERS_PER_TOKEN * min(1.0, share))


@functools.lru_cache(maxsize=16)
def _look(data: str, text_field: str | None, split: str, moment: int) -> Survey:
    return survey(data, text_field=text_field, split=split, previews=0)


@functools.lru_cache(maxsize=16)
def _lengths(folder: str, data: str, text_field: str | None, split: str, moment: int) -> tuple[int | str, ...]:
    try:
        vocabulary = read_vocabulary(Path(folder))
    except ModelError:  # problems are reported when the request is checked
        return ()
    conversations = _look(data, text_field, split, moment).conversations
    return tuple(conversation_lengths(conversations, Path(folder), vocabulary) or ())
