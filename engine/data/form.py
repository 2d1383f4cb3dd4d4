"""Format of a file's records: which of their fields make a text or a conversation, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.data.spoken import Record

CHAT_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "contents")
TEXT_FIELDS = ("text", "content", "body", "document", "article", "passage", "story", "markdown", "sentence")
QUESTIONS = (
    *("prompt", "instruction", "question", "query", "problem", "user", "human", "input"),
    *("inputs_pretokenized", "inputs", "input_text", "message"),  # T0's, FLAN's, Vertex's and Cohere's
)
_SURE_ANSWERS = ("completion", "response", "output", "solution", "answer", "assistant", "reply")
ANSWERS = (*_SURE_ANSWERS, "targets_pretokenized", "targets", "output_text")
NUMBERED_ANSWERS = _SURE_ANSWERS
"""Fields of which a number is an answer: ``72``. Under the other names it is the number of a class."""
PAIRS = (
    *(("context", "response"), ("utterance", "response"), ("request", "response"), ("q", "a")),
    *(("user", "bot"), ("human", "bot"), ("user_input", "bot_response"), ("user_message", "assistant_message")),
    *(("input", "target"), ("inputs", "outputs"), ("input_text", "target_text"), ("prompt", "target")),
    *(("source", "target"), ("source_text", "target_text"), ("question", "best_answer"), ("prompt", "generation")),
)
"""Names that mean a question and its answer only beside each other, and where no other field holds a text."""
PROGRAMS = (("text", "code"), ("prompt", "code"))
"""Names of a task and the program that solves it, where tests of the program stand beside them (MBPP)."""
PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
"""The answer that is learned, and the one that is not: TRL's names (LLaMA-Factory's too), and OpenAI's."""

Kind = Literal["text", "turns", "pair", "preference", "tree", "calls", "spans", "strings", "transcript"]


@dataclass(frozen=True)
class Form:
    """Format of a file's records.

    Attributes:
        kind: of what the fields hold.
        name: the field, or fields, as shown to the user.
        parts: field of each part: ``turns`` or ``text``; of a pair ``question`` and ``answer``.
        within: the field that holds the whole record as JSON; None where the record is its own.
    """

    kind: Kind
    name: str
    parts: Mapping[str, str] = field(default_factory=dict)
    within: str | None = None

    @property
    def is_chat(self) -> bool:
        """Return whether it makes conversations."""
        return self.kind != "text"


def mostly(records: Sequence[Record], name: str, holds: Callable[[Any], bool]) -> bool:
    """Return whether it is so for a field of at least half of the records."""
    return often([record.get(name) for record in records], holds)


def often(values: Sequence[Any], holds: Callable[[Any], bool]) -> bool:
    """Return whether it is so for at least half of the values, and for one."""
    count = sum(map(holds, values))
    return count > 0 and 2 * count >= len(values)
