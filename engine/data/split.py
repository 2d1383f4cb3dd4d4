"""Split of documents into training and hold-out.

A document is completely on one side, which depends on its text only. A long document is first split into pieces at
paragraph borders, and each piece counts as a document: otherwise one file could not be split, and training on a few
books would miss whole books. Consecutive pieces on the same side stay together. Knows nothing of tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from engine.data.document import Document
from engine.data.holdout import is_holdout
from engine.data.pieces import cut_text


@dataclass(frozen=True)
class Cutting:
    """When a document is long, and how long its pieces are.

    Attributes:
        whole_up_to: characters up to which a document stays whole.
        piece_characters: about how long a piece is.
    """

    whole_up_to: int
    piece_characters: int


USUAL = Cutting(whole_up_to=32_768, piece_characters=4_096)
FINE = Cutting(whole_up_to=768, piece_characters=512)
"""For so little text that nothing would be held out otherwise."""


def pieces(document: Document, cutting: Cutting | None) -> list[str]:
    """The texts that are on one side each; with None, and for a conversation, the document as a whole."""
    if cutting is None or document.messages is not None or len(document.text) <= cutting.whole_up_to:
        return [document.text]
    return cut_text(document.text, cutting.piece_characters)


def stretches(document: Document, fraction: float, cutting: Cutting | None) -> Iterator[tuple[bool, str]]:
    """A document's text as stretches, each with whether it is held out; one behind the other they are the document."""
    sided = ((is_holdout(piece, fraction), piece) for piece in pieces(document, cutting))
    for held_out, group in itertools.groupby(sided, key=lambda pair: pair[0]):
        yield held_out, "".join(piece for _, piece in group)
