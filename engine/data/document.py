"""One text as it comes from a source, before it is tokenised.

Knows nothing of tokens, of files or of where the hold-out is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A text with a name.

    Attributes:
        name: where it comes from, for messages; unique within a source.
        text: the text itself; for chat data, what is hashed to tell documents apart.
        messages: the turns of a conversation (``role`` and ``content``), or None for plain text.
    """

    name: str
    text: str
    messages: tuple[dict[str, str], ...] | None = None
