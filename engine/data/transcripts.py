"""Conversations that are written as one text: ``Human: …`` and ``Assistant: …``, or glaive's ``USER: …``.

A text is a transcript only if it begins with the name of a speaker and has another one behind it; anything else stays
the text that it is. Glaive's data sets write tool calls behind ``<functioncall>``, and end answers with
``<|endoftext|>``, which are not part of what is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.data.turns import Turn, calls_in

_ROLES = {
    "human": "user",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "function response": "tool",
}
# A speaker's name at the beginning of the text, and behind blank lines; where there is none, behind any line.
_STYLES = (
    re.compile(r"(?:\A[ \n]*|\n *\n *)(Human|Assistant):[ \n]?"),
    re.compile(r"(?:\A[ \n]*|\n)(Human|Assistant):[ \n]?"),
    re.compile(r"(?:\A\s*|\n[ \t]*)(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):[ \n]?"),
)
_END = "<|endoftext|>"
_CALL = "<functioncall>"
# Beginnings of texts that a chat template of some model has written, or that a person has written like one.
_RENDERED = re.compile(
    r"\s*(?:<s>\s*|<\|begin_of_text\|>)?(?:<\|im_start\|>|\[INST\]|<start_of_turn>|<\|start_header_id\|>|<\|user\|>|<\|system\|>"
    r"|#{2,3} ?(?:Instruction|Human|User)\b|(?:USER|User|Human): .*\s(?:ASSISTANT|Assistant):"
    r"|Below is an instruction that)",
    re.DOTALL,
)


def transcript_of(text: str) -> list[Turn]:
    """The turns of a text that is a transcript; none of any other.

    A transcript that ends with ``Assistant:`` is a question; its last turn is the user's.

    Raises:
        UnusableTurns: a tool call in it is not written in JSON.
    """
    found = _speakers(text)
    ends = [match.start() for match in found[1:]] + [len(text)]
    turns = [_turn(match[1], text[match.end() : end]) for match, end in zip(found, ends, strict=True)] if found else []
    is_question = bool(turns) and turns[-1] == {"role": "assistant", "content": ""}
    return turns[:-1] if is_question else turns


def is_answered(value: object) -> bool:
    """Return whether a value is a transcript with something behind the assistant's name."""
    found = _speakers(value) if isinstance(value, str) else []
    answers = [match for match in found if match[1].lower() == "assistant"]
    return bool(answers) and (len(answers) > 1 or bool(str(value)[answers[0].end() :].strip()))


def reads_as_conversation(texts: Sequence[str]) -> bool:
    """Return whether most of these texts are conversations, as transcripts or as a chat template writes them."""
    return bool(texts) and 2 * sum(bool(_RENDERED.match(text) or _speakers(text)) for text in texts) > len(texts)


def _speakers(text: str) -> list[re.Match[str]]:
    """The speakers' names in a transcript; none in any other text."""
    for style in _STYLES:
        found = list(style.finditer(text))
        names = {match[1].lower() for match in found}
        if len(names) > 1 and found[0].start() == 0 and "assistant" in names:
            return found
    return []


def _turn(name: str, said: str) -> Turn:
    role = _ROLES[name.lower()]
    said = said.strip().removesuffix(_END).strip()
    if role != "assistant" or _CALL not in said:
        return {"role": role, "content": said}
    before, _, call = said.partition(_CALL)
    return {"role": role, "content": before.strip(), "tool_calls": calls_in(call.strip())}
