"""How much text there is, in tokens: an estimate without a tokenizer, kept for a moment while a form is filled in."""

from __future__ import annotations

import functools
import math
import time

from engine.config import RunConfig
from engine.data.survey import CHARACTERS_PER_TOKEN, survey
from engine.format import format_count

# A form asks for a plan on each key; the text behind it is looked at again after so many seconds.
_KEPT_SECONDS = 30
# The vocabulary that the usual number of characters a token belongs to.
_USUAL_VOCABULARY = 50_000


def count_tokens(data: str, config: RunConfig, vocab_size: int) -> tuple[int | None, str]:
    """Tokens of the text, None where they cannot be estimated, and how the number came about.

    Raises:
        DataError: there is no text, or none that can be used.
    """
    characters = _characters(data, config.text_field, config.data_split, int(time.monotonic() / _KEPT_SECONDS))
    if characters is None:
        return None, "the amount of text is not known before it is read"
    tokens = round(characters / characters_per_token(vocab_size))
    return tokens, f"about {format_count(tokens)} tokens of text"


def characters_per_token(vocab_size: int) -> float:
    """Characters of English in a token: one of a small vocabulary carries fewer bits, so it stands for less text."""
    share = math.log(max(2, vocab_size)) / math.log(_USUAL_VOCABULARY)
    return max(1.0, CHARACTERS_PER_TOKEN * min(1.0, share))


@functools.lru_cache(maxsize=16)
def _characters(data: str, text_field: str | None, split: str, moment: int) -> int | None:
    return survey(data, text_field=text_field, split=split, previews=0).characters
