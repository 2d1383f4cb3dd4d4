"""Fields beside a question and its answer: more of the question, the reasoning, and fields that are not read.

The functions look at each record, for a field may be absent from the first records of a file. They do not open files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from engine.data.blocks import UnusableTurns
from engine.data.spoken import Record, is_text, quoted
from engine.data.turns import are_turns, json_value

MORE_OF_THE_QUESTION = ("question", "query", "problem", "input", "context", "passage")
"""In this order behind an instruction or a question, where they hold text."""

_REASONING = re.compile(
    r"(?:\w+_)?(?:reasoning|thinking|thoughts?|cot|chain_of_thought|rationale)"
    r"(?:_(?:content|trace|text|process|steps|trajectory))?",
    re.IGNORECASE,
)
# Answers to choose from, one a field or all in one.
_CHOICES = re.compile(
    r"[a-e]|(?:option|opt?|choice|answer|ending|distractor|incorrect_answer)_?\w{1,2}|options|choices|endings|distractors",
    re.IGNORECASE,
)

_JUDGES = re.compile(
    r"(?:^|_)(?:scores?|ratings?|rewards?|quality|grade|helpfulness|correctness|votes|upvotes|feedback|winner)(?:$|_)",
    re.IGNORECASE,
)
# Pictures and recordings that a question is about: their bytes, files, addresses or numbers.
_MEDIA = re.compile(
    r"(?:image|img|picture|photo|video|audio)s?(?:_?(?:paths?|files?|file_?names?|urls?|ids?|names?|bytes|base64|b64|data))?",
    re.IGNORECASE,
)
_WEIGHTS = ("weight", "loss_weight", "sample_weight", "example_weight")
_WORDS = 2  # in a sentence there are more


def more_of_the_question(record: Record, question: str, said: str) -> list[str]:
    """Texts that belong to a question: an input, a context.

    Args:
        record: the question's.
        question: the question's field.
        said: the question.

    Raises:
        UnusableTurns: such a field holds something that is no text.
    """
    names = {name.lower(): name for name in reversed(list(record))}
    found: list[str] = []
    for known in MORE_OF_THE_QUESTION:
        name = names.get(known)
        if name is None or name == question or is_nothing(record[name]):
            continue
        text = _as_text(record[name])
        if text is None:
            raise UnusableTurns(
                f"record whose {quoted(name)} beside the question is no text (write it as text, or name the field "
                "otherwise where it is no part of the question)"
            )
        if text.strip() not in "\n".join([said, *found]):
            found.append(text)
    return found


def reasoning(record: Record, used: Iterable[str]) -> str:
    """The reasoning before an answer; empty where there is none."""
    names = [name for name in record if is_reasoning(name) and name not in used]
    return next((record[name] for name in names if is_text(record[name])), "")


def is_reasoning(name: str) -> bool:
    """Return whether a field is called as one that holds the reasoning before an answer."""
    return bool(_REASONING.fullmatch(re.sub(r"[\s-]+", "_", name.strip())))


def medium_beside(record: Record) -> str | None:
    """The field with a picture or a recording beside a conversation, which may be about it; None without one."""
    for name, value in record.items():
        held = _list_of(value)
        is_empty = is_nothing(held) or (isinstance(held, list) and all(map(is_nothing, held)))
        if not is_empty and _MEDIA.fullmatch(re.sub(r"[\s-]+", "_", name.strip())):
            return name
    return None


def asks_to_choose(records: Sequence[Record], answer: str) -> bool:
    """Return whether records hold several answers of which theirs names one: ``B``, ``2``."""
    named = {name for record in records for name in record if _CHOICES.fullmatch(name) and name != answer}
    several = len(named) > 1 or any(
        isinstance(_list_of(record.get(name)), list) for record in records for name in named
    )
    short = sum(len(str(record.get(answer)).strip()) <= 2 for record in records)
    return several and 2 * short >= len(records)


def number_as_text(value: object) -> str | None:
    """``72`` for an answer that is a number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else str(value)


def unread(records: Sequence[Record], used: Iterable[str], told: Sequence[str]) -> list[str]:
    """Fields that hold sentences in most records and are not read.

    Args:
        records: the first of a file.
        used: fields that are read, or that are left out for what they are called.
        told: the text that is read of each record; a sentence in it is not lost.
    """
    known = {name.lower() for name in used}
    names = dict.fromkeys(name for record in records for name in record if name.lower() not in known)
    return [
        name
        for name in names
        if 2 * sum(_says_more(record.get(name), text) for record, text in zip(records, told, strict=True))
        >= max(1, len(records))
    ]


def says_how_good(records: Sequence[Record], name: str) -> bool:
    """Return whether a field judges answers: a score, a rating. A bad answer is learned like a good one."""
    return bool(_JUDGES.search(name)) and 2 * sum(not is_nothing(record.get(name)) for record in records) >= len(
        records
    )


def weightless(record: Record) -> str | None:
    """The field that gives a whole record the weight 0: nothing of it is to be learned."""
    return next((name for name in record if name.lower() in _WEIGHTS and str(record[name]) in ("0", "0.0")), None)


def is_nothing(value: object) -> bool:
    """Return whether a field says nothing: no text, an empty list, a number that is none."""
    return value is None or value in ("", [], {}) or value != value or (isinstance(value, str) and value.isspace())


def _as_text(value: Any) -> str | None:
    value = _list_of(value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n\n".join(value)
    return value if isinstance(value, str) else number_as_text(value)


def _says_more(value: Any, told: str) -> bool:
    value = _list_of(value)
    if are_turns(value):
        return any(_says_more(turn["content"], told) for turn in value if isinstance(turn.get("content"), str))
    if isinstance(value, list):
        return any(isinstance(part, str) and _says_more(part, told) for part in value)
    return isinstance(value, str) and len(value.split()) > _WORDS and value.strip() not in told


def _list_of(value: Any) -> Any:
    """A list that stands as JSON in a text; any other value as it is."""
    found = json_value(value)
    return found if isinstance(found, list) else value
