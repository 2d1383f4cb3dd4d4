"""One text as it comes from a source, before it is tokenised.

Knows nothing of tokens, of files or of where the hold-out is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Document:
    """A text with a name.

    Attributes:
        name: where it comes from, for messages; unique within a source.
        text: the text itself; for chat data, what is hashed to tell documents apart.
        messages: the turns of a conversation (``role``, ``content`` and what else they have), or None for plain text.
        fields: other fields of a conversation's record, for the chat template: ``tools``, ``documents``.
        notes: what of a conversation was read in an unexpected way, to be counted.
    """

    name: str
    text: str
    messages: tuple[dict[str, Any], ...] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
