"""Formats of well-known data sets that have names and shapes of their own.

Each has one clear meaning: a tree of messages (OpenAssistant), tool calls as answers (xLAM), spans of a passage
(SQuAD), texts that the user and the assistant say in turn (UltraChat, LIMA), and a transcript (glaive, hh-rlhf).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.data.blocks import UnusableTurns
from engine.data.form import CHAT_FIELDS, QUESTIONS, Form, mostly
from engine.data.spoken import Record, decoded, is_text, quoted
from engine.data.transcripts import is_answered, transcript_of
from engine.data.turns import Messages, Turn, calls_in, is_turn, read_turns

BEST_PATH = "tree of messages of which the best-ranked path is learned"
NOT_ON_PATH = "message of a tree beside its best-ranked path (not read)"
IN_TURN = "list of texts read as what the user and the assistant say in turn"
FIRST_ANSWER = "question with several answers, of which the first is learned"
NO_SPAN = "question whose passage has no answer"
CHOICES = {
    "tree": "Trees of messages, of which the best-ranked path is learned and the other messages are not read",
    "strings": "Lists of texts, read as what the user and the assistant say in turn",
}
"""Sentences about a whole file, told before any of it is tokenised, by the kind of its format."""
_LISTS = (*CHAT_FIELDS, "data")
_TRANSCRIPTS = (*CHAT_FIELDS, "sample", "transcript", "chosen")
_PASSAGES = ("context", "passage", "text", "document", "article", "paragraph")
_DEEPEST = 200  # messages in one path of a tree


def known_form(records: Sequence[Record]) -> Form | None:
    """The format of records that are those of such a data set; None for all others."""
    return _tree_form(records) or _answers_form(records) or _list_form(records)


def known_conversation(record: Record, form: Form) -> tuple[Messages, tuple[str, ...]]:
    """The turns of a record in such a format, and what is said of the way in which they were read.

    Raises:
        UnusableTurns: it makes no conversation.
    """
    readers: dict[str, Callable[[Record, Mapping[str, str]], tuple[list[Turn], tuple[str, ...]]]] = {
        "tree": _best_path,
        "calls": _calls,
        "spans": _span,
        "strings": _in_turn,
        "transcript": _transcript,
    }
    turns, notes = readers[form.kind](record, form.parts)
    return read_turns(turns), notes


def _tree_form(records: Sequence[Record]) -> Form | None:
    names = dict.fromkeys(name for record in records for name in record)
    name = next((name for name in names if mostly(records, name, _is_tree)), None)
    return Form("tree", name, {"tree": name}) if name else None


def _answers_form(records: Sequence[Record]) -> Form | None:
    """Return the form of xLAM's and SQuAD's records: a question, and ``answers`` that are no text."""
    question = next((name for name in QUESTIONS if mostly(records, name, is_text)), None)
    if question is None:
        return None
    parts = {"question": question, "answer": "answers"}
    if mostly(records, "answers", _are_calls) and any("tools" in record for record in records):
        return Form("calls", f"{question} + answers", parts)
    passage = next((name for name in _PASSAGES if mostly(records, name, is_text)), None)
    if passage and mostly(records, "answers", lambda value: _spans(value) is not None):
        return Form("spans", f"{question} + {passage} + answers", {**parts, "passage": passage})
    return None


def _list_form(records: Sequence[Record]) -> Form | None:
    for known in _LISTS:
        name = _named(records, known)
        if name and mostly(records, name, _are_texts):
            return Form("strings", name, {"turns": name})
    for known in _TRANSCRIPTS:
        name = _named(records, known)
        if name and mostly(records, name, is_answered) and not (known == "chosen" and _named(records, "rejected")):
            return Form("transcript", name, {"turns": name})
    return None


def _named(records: Sequence[Record], known: str) -> str | None:
    return next((name for record in records for name in record if name.lower() == known), None)


def _is_tree(value: object) -> bool:
    """Return whether a value is a message with replies to it."""
    message = decoded(value)
    return is_turn(message) and isinstance(message, Mapping) and isinstance(message.get("replies"), list)


def _best_path(record: Record, parts: Mapping[str, str]) -> tuple[list[Turn], tuple[str, ...]]:
    """The messages from a tree's root on, each time the reply with the lowest rank; the first where none has a rank."""
    message: Any = decoded(record.get(parts["tree"]))
    if not _is_tree(message):
        raise UnusableTurns(f"record whose {quoted(parts['tree'])} is no tree of messages")
    path: list[Turn] = []
    beside = 0
    while message is not None:
        path.append({key: message[key] for key in ("role", "text", "content") if message.get(key) is not None})
        if len(path) > _DEEPEST:
            raise UnusableTurns(f"tree of messages with a path of more than {_DEEPEST}")
        replies = [reply for reply in message.get("replies") or () if is_turn(reply) and not reply.get("deleted")]
        best = min(replies, key=_rank, default=None)
        beside += sum(_messages(reply) for reply in message.get("replies") or () if reply is not best)
        message = best
    return path, (BEST_PATH, *[NOT_ON_PATH] * beside) if beside else ()


def _messages(message: Any) -> int:
    """Messages of a tree below one of them, with that one."""
    waiting, count = [message], 0
    while waiting:
        count += 1
        replies = waiting.pop()
        waiting += replies.get("replies") or () if isinstance(replies, Mapping) else ()
    return count


def _rank(message: Mapping[str, Any]) -> float:
    rank = message.get("rank")
    return float(rank) if isinstance(rank, int | float) and rank == rank else float("inf")


def _are_calls(value: object) -> bool:
    calls = decoded(value)
    return (
        isinstance(calls, list)
        and bool(calls)
        and all(
            isinstance(call, Mapping) and isinstance(call.get("name"), str) and "arguments" in call for call in calls
        )
    )


def _calls(record: Record, parts: Mapping[str, str]) -> tuple[list[Turn], tuple[str, ...]]:
    given = record.get(parts["answer"])
    answer: Turn = {"role": "assistant", "content": ""}
    if _are_calls(given):
        answer["tool_calls"] = decoded(given)
    elif isinstance(given, str) and is_text(given):
        answer = answer | ({"tool_calls": calls_in(given)} if given.lstrip()[:1] in "[{" else {"content": given})
    else:
        raise UnusableTurns("record without a question and its answer")
    return [_asked(record, parts["question"]), answer], ()


def _asked(record: Record, name: str) -> Turn:
    asked = record.get(name)
    if not isinstance(asked, str) or not is_text(asked):
        raise UnusableTurns("record without a question and its answer")
    return {"role": "user", "content": asked}


def _spans(value: object) -> list[str] | None:
    """The texts of SQuAD's answers, a list in an object or an object each; None for anything else."""
    answers = decoded(value)
    if isinstance(answers, Mapping) and "answer_start" in answers:
        answers = answers.get("text")
    elif isinstance(answers, list) and all(isinstance(each, Mapping) and "answer_start" in each for each in answers):
        answers = [each.get("text") for each in answers]
        if not answers:
            return None
    else:
        return None
    return answers if isinstance(answers, list) and all(isinstance(text, str) for text in answers) else None


def _span(record: Record, parts: Mapping[str, str]) -> tuple[list[Turn], tuple[str, ...]]:
    texts = _spans(record.get(parts["answer"])) or []
    different = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not different:
        raise UnusableTurns(NO_SPAN)
    passage = record.get(parts["passage"])
    if not isinstance(passage, str) or not is_text(passage):
        raise UnusableTurns("question without its passage")
    asked = _asked(record, parts["question"])
    asked["content"] += f"\n{passage}"
    return [asked, {"role": "assistant", "content": different[0]}], (FIRST_ANSWER,) if len(different) > 1 else ()


def _are_texts(value: object) -> bool:
    """Return whether a value is a list of texts, or of questions with their answers as two texts each."""
    texts = decoded(value)
    if not isinstance(texts, list) or not texts:
        return False
    if all(isinstance(pair, list) and len(pair) == 2 for pair in texts):
        texts = [text for pair in texts for text in pair]
    return len(texts) > 1 and all(map(is_text, texts))


def _in_turn(record: Record, parts: Mapping[str, str]) -> tuple[list[Turn], tuple[str, ...]]:
    value = record.get(parts["turns"])
    if not _are_texts(value):
        raise UnusableTurns(f"record whose {quoted(parts['turns'])} is no list of texts")
    texts = [text for each in decoded(value) for text in (each if isinstance(each, list) else [each])]
    return [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)], (
        IN_TURN,
    )


def _transcript(record: Record, parts: Mapping[str, str]) -> tuple[list[Turn], tuple[str, ...]]:
    text = record.get(parts["turns"])
    turns = transcript_of(text) if isinstance(text, str) else []
    if not turns:
        raise UnusableTurns(f"record whose {quoted(parts['turns'])} does not say who speaks")
    return turns, ()
