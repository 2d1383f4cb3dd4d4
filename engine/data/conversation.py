"""The conversation of a record, once it is known which fields make it: turns, a pair, or a preference.

An answer that is rejected, or labelled as unwanted, is never learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.data.beside import (
    is_nothing,
    is_reasoning,
    medium_beside,
    more_of_the_question,
    number_as_text,
    reasoning,
    says_how_good,
    unread,
)
from engine.data.blocks import UnusableTurns
from engine.data.fields import all_fields
from engine.data.form import PREFERENCES, Form, mostly
from engine.data.known_sets import known_conversation
from engine.data.spoken import Record, decoded, is_text, quoted, spoken
from engine.data.tools import TOOL_FIELDS, is_listed, tools_of
from engine.data.transcripts import transcript_of
from engine.data.turns import Messages, Turn, are_turns, json_value, read_turns, told, unread_flags

PREFERENCE = "preference row of which the chosen answer is learned"
NOT_WANTED = "answer that is labelled as unwanted"
# Fields that say whether an answer is wanted (KTO): TRL's name, LLaMA-Factory's, and words of others.
_WANTED = (
    *("label", "kto_tag", "desirable", "preferred", "chosen", "is_correct", "correct", "passed", "is_good", "accepted"),
    *("approved", "is_preferred", "is_chosen", "thumbs_up"),
)
_UNWANTED_WORDS = frozenset({"false", "thumbs_down", "thumbs down", "dislike", "rejected", "undesirable"})
# Of these 0 is clear; a label, a preference or a thumb may be the number of a class, of an answer, or a count.
_CLEAR_AT_0 = ("kto_tag", *(name for name in _WANTED if name.startswith(("is_", "correct", "passed", "accepted"))))
_KTO = {"prompt", "completion", "label"}
_SYSTEM = ("system", "system_prompt", "systemInstruction", "system_instruction", "preamble")
_HISTORIES = ("history", "chat_history")
_NOT_FOR_TEMPLATES = ("messages", "id", *(rejected for _, rejected in PREFERENCES), *_WANTED, *_SYSTEM)
_LONGEST_VALUE = 2_000  # a longer text of a row is no switch of a template


@dataclass(frozen=True)
class Conversation:
    """A conversation and the other fields of its record.

    Attributes:
        messages: the turns.
        fields: other fields of the record, for templates that ask for them: ``tools``, ``documents``.
        notes: what was read in an unexpected way, to be counted.
    """

    messages: Messages
    fields: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def conversation_of(record: Record, form: Form) -> Conversation:
    """The conversation that a record of this form makes.

    Raises:
        UnusableTurns: it makes none.
    """
    if form.within is not None:
        inner = json_value(record.get(form.within))
        if not isinstance(inner, dict):
            raise UnusableTurns(f"record whose {quoted(form.within)} holds no conversation")
        record = {**record, **inner}
    parts, notes = form.parts, list[str]()
    if form.kind != "preference" and _is_unwanted(record):
        raise UnusableTurns(NOT_WANTED)
    if form.kind == "turns":
        value = decoded(record.get(parts["turns"]))
        if not are_turns(value):
            raise UnusableTurns(f"record whose {quoted(parts['turns'])} holds no conversation")
        messages = _weighted(read_turns(value), decoded(record.get("weights")))
    elif form.kind == "pair":
        messages = _pair(record, parts)
    elif form.kind != "preference":
        messages, told_of = known_conversation(record, form)
        notes += told_of
    else:
        notes.append(PREFERENCE)
        messages = _chosen(record, parts)
    system = _system(record)
    if system and not any(turn["role"] in ("system", "developer") for turn in messages):
        messages = (system, *messages)
    if (medium := medium_beside(record)) is not None:
        raise UnusableTurns(
            f"conversation with a picture or a recording in {quoted(medium)} (without this field its text alone is "
            "learned)"
        )
    asked = decoded(record.get(parts.get("question", "")))
    # OpenAI's input has tools beside its messages. Another question in JSON has nothing for the template.
    more = asked if isinstance(asked, Mapping) and are_turns(asked.get("messages")) else {}
    fields = _for_templates({**record, **more}, {*parts.values(), form.within or ""})
    tools = {} if is_listed(messages) else tools_of(fields)
    return Conversation(
        messages, {name: fields[name] for name in fields if name not in TOOL_FIELDS} | tools, tuple(notes)
    )


def unread_fields(records: Sequence[Record], form: Form) -> list[str]:
    """Fields that hold sentences in most of a file's first records and are not read."""
    used = {*form.parts.values(), *_NOT_FOR_TEMPLATES, form.within or "", *TOOL_FIELDS, "documents", *_HISTORIES}
    told_of, whole = [], []
    for record in records:
        inner = json_value(record.get(form.within or ""))
        whole.append({**record, **inner} if isinstance(inner, dict) else record)
        try:
            told_of.append(told(conversation_of(record, form).messages) if form.is_chat else str(record.get(form.name)))
        except UnusableTurns:
            told_of.append("")
    if form.is_chat:
        scores = [name for name in all_fields(whole) if name not in used and says_how_good(whole, name)]
        scores += [name for name in all_fields(whole) if _may_judge(whole, name)]
    else:
        scores = []
    if form.kind == "turns":
        name = form.parts["turns"]
        scores += [f"{name}[].{flag}" for flag in unread_flags(decoded(record.get(name)) for record in whole)]
    if form.kind == "pair":
        used |= {name for record in whole for name in record if is_reasoning(name)}
    return list(dict.fromkeys([*unread(whole, used, told_of), *scores]))


def _pair(record: Record, parts: Mapping[str, str]) -> Messages:
    given = record.get(parts["answer"])
    answer = number_as_text(given) or spoken(given)
    if answer is None:
        raise UnusableTurns("record without a question and its answer")
    return (*_question(record, parts["question"]), *_answered(answer, reasoning(record, parts.values())))


def _chosen(record: Record, parts: Mapping[str, str]) -> Messages:
    chosen = spoken(record.get(parts["answer"]))
    if chosen is None:
        raise UnusableTurns("preference row without a chosen answer")
    if isinstance(chosen, str):
        transcript = transcript_of(chosen)
        answer = read_turns(transcript) if transcript else _answered(chosen)
    else:
        answer = read_turns(chosen)
    if any(turn["role"] == "user" for turn in answer):
        return answer
    return (*_question(record, parts.get("question", "")), *answer)


def _question(record: Record, name: str) -> Messages:
    """The turns of a question, with all that belongs to it in other fields."""
    question = spoken(record.get(name))
    if question is None:
        raise UnusableTurns("record without a question and its answer")
    if isinstance(question, str):
        question = "\n".join([question, *more_of_the_question(record, name, question)])
    history = next((record[other] for other in record if other.lower() in _HISTORIES), None)
    return (*_history(history), *_asked(question))


def _asked(question: str | list[Any]) -> Messages:
    """A question's turns. Answers that were given before it are read, not learned."""
    if isinstance(question, str):
        transcript = transcript_of(question)
        turns = read_turns(transcript) if transcript else ({"role": "user", "content": question},)
    else:
        turns = read_turns(question)
    return tuple({**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in turns)


def _answered(answer: str | list[Any], thought: str = "") -> Messages:
    if not isinstance(answer, str):
        return read_turns(answer)
    turn = {"role": "assistant", "content": answer}
    return ({**turn, "reasoning_content": thought} if thought else turn,)


def _history(value: object) -> Messages:
    """Alpaca's history: earlier questions with their answers, in pairs; or turns, or a transcript.

    Raises:
        UnusableTurns: it is something else, without which the question may mean something else.
    """
    value = decoded(value)
    if are_turns(value):
        return read_turns(value)  # type: ignore[arg-type]
    if isinstance(value, str) and (transcript := transcript_of(value)):
        return read_turns(transcript)
    if is_nothing(value):
        return ()
    turns: list[Turn] = []
    for pair in value if isinstance(value, list) else [None]:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise UnusableTurns("record whose history is no list of questions with answers")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return tuple(turns)


def _system(record: Record) -> Turn | None:
    value = next((record[name] for name in _SYSTEM if record.get(name)), None)
    if isinstance(value, str):
        value = {"content": value.removeprefix("SYSTEM: ").strip()} if is_text(value) else None  # glaive's prefix
    if isinstance(value, Mapping):
        value = value.get("content", value)
    elif not isinstance(value, list):
        return None
    turn = read_turns([{"role": "system", "content": value}])[0]
    return turn if is_text(turn["content"]) else None


def _for_templates(record: Record, used: set[str]) -> dict[str, Any]:
    """Fields other than the turns that a template may use."""
    found = {}
    for name, value in record.items():
        held = decoded(value)
        is_long = isinstance(held, str) and len(held) > _LONGEST_VALUE
        if name not in used and name not in _NOT_FOR_TEMPLATES and held not in (None, "", []) and not is_long:
            found[name] = held
    more = found.pop("chat_template_kwargs", None)
    return {**found, **more} if isinstance(more, dict) else found


def _weighted(messages: Messages, weights: object) -> Messages:
    """The turns with the weights that stand beside them in a list, one for each answer or for each turn.

    Raises:
        UnusableTurns: there are more or fewer of them.
    """
    if not isinstance(weights, list) or not weights or not all(isinstance(each, int | float) for each in weights):
        return messages
    answers = [number for number, turn in enumerate(messages) if turn["role"] == "assistant"]
    places = {len(messages): range(len(messages)), len(answers): answers}.get(len(weights))
    if places is None:
        raise UnusableTurns("record whose 'weights' are not one for each answer")
    nothing = {place for place, weight in zip(places, weights, strict=True) if weight <= 0}
    return tuple(
        {**turn, "weight": 0} if place in nothing and place in answers else turn for place, turn in enumerate(messages)
    )


def _is_unwanted(record: Record) -> bool:
    """Return whether a record says that its answer is not wanted. 0 is clear where it can mean nothing else."""
    values = {name: str(record.get(name)).lower() for name in _WANTED}
    if not _UNWANTED_WORDS.isdisjoint(values.values()) or any(values[name] in ("0", "0.0") for name in _CLEAR_AT_0):
        return True
    return {name for name in record if name != "id"} == _KTO and values["label"] in ("0", "0.0", "-1", "-1.0")


def _may_judge(records: Sequence[Record], name: str) -> bool:
    """Return whether a field may call answers unwanted, in numbers that can mean something else."""
    if name not in _WANTED or name in _CLEAR_AT_0 or any({*record} - {"id"} == _KTO for record in records):
        return False
    return mostly(records, name, lambda value: isinstance(value, int | float) and not isinstance(value, bool))
