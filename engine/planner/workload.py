"""The amount of text: rows and tokens to train on, to hold out and to score.

Pure arithmetic; the defaults that follow from it are in :mod:`engine.planner.defaults`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.data.holdout import FEWEST_HOLDOUT_ROWS, wanted_holdout_rows


@dataclass(frozen=True)
class Text:
    """The amount of text.

    Attributes:
        tokens: of all documents; None while it is not known.
        holdout: share kept out of training.
        samples: most rows to train on; None for all.
        conversations: tokens of some conversations, as a chat template writes them; empty for plain text.
    """

    tokens: int | None
    holdout: float
    samples: int | None
    conversations: tuple[int, ...] = ()

    def share_whole(self, length: int) -> float:
        """Share of the conversations that fit into a row of ``length`` whole; 1 for plain text."""
        if not self.conversations:
            return 1.0
        return sum(tokens <= length for tokens in self.conversations) / len(self.conversations)

    def row_tokens(self, length: int) -> int:
        """Tokens that a row of ``length`` holds: a conversation is not cut, so that some of it stays empty."""
        if not self.conversations:
            return length
        each = sum(min(tokens, length) for tokens in self.conversations) / len(self.conversations)
        return max(1, min(length, round(max(1, int(length / each)) * each)))

    def kept_tokens(self, length: int) -> int | None:
        """Tokens of all documents, without what is cut off conversations that are longer than a row."""
        if self.tokens is None or not self.conversations:
            return self.tokens
        kept = sum(min(tokens, length) for tokens in self.conversations) / sum(self.conversations)
        return max(1, round(self.tokens * kept))

    def train_rows(self, length: int) -> int | None:
        """Rows of ``length`` tokens to train on."""
        tokens = self.kept_tokens(length)
        if tokens is None:
            return self.samples
        rows = max(1, math.ceil(tokens * (1 - self.holdout) / self.row_tokens(length)))
        return min(rows, self.samples or rows)

    def train_tokens(self, length: int) -> int | None:
        """Tokens to train on, at rows of ``length``."""
        rows, tokens = self.train_rows(length), self.kept_tokens(length)
        if rows is None:
            return None
        held = rows * self.row_tokens(length)
        return held if tokens is None else min(held, int(tokens * (1 - self.holdout)) or 1)

    def holdout_tokens(self, length: int) -> int:
        """Tokens kept out: as many rows as prepare holds out, where the text has them."""
        tokens = self.kept_tokens(length)
        if tokens is None and self.samples is None:
            return FEWEST_HOLDOUT_ROWS * length
        wanted = wanted_holdout_rows(self.samples, self.holdout) * self.row_tokens(length)
        return wanted if tokens is None else min(wanted, int(tokens * self.holdout))

    def all_tokens(self, length: int) -> int:
        """Tokens that the teacher reads."""
        return (self.train_tokens(length) or 0) + self.holdout_tokens(length)
