"""Detection of the fields of a record that hold text or a conversation, and their conversion.

The first records of a file determine them. A conversation is one field (``messages``, ShareGPT's ``conversations``),
two fields with a question and its answer (``prompt`` and ``completion``, Alpaca's ``instruction`` and ``output``), or
preferences (``chosen`` and ``rejected``, OpenAI's ``preferred_output``); each of these may be JSON in a text. An answer
that is rejected, or labelled as unwanted, is never learned. Otherwise a field with a usual name is plain text,
otherwise the only field with text. Further guesses would risk training on the wrong text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.data.turns import Messages, Turn, UnusableTurns, are_turns, is_answer, is_turn, json_value, read_turns

CHAT_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "contents")
TEXT_FIELDS = ("text", "content", "body", "document", "article", "passage", "story", "markdown", "sentence")
QUESTIONS = ("prompt", "instruction", "question", "query", "problem", "user", "human", "input")
ANSWERS = ("completion", "response", "output", "solution", "answer", "assistant", "reply")

PREFERENCE = "preference row of which the chosen answer is learned"
NOT_WANTED = "answer that is labelled as unwanted"
# The answer that is learned, and the one that is not: TRL's names (LLaMA-Factory's too), and OpenAI's.
_PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
_REJECTED = re.compile(r"reject|non_?preferred|dispreferred|negative|worse|worst|\blos(?:e|er|ing)\b", re.IGNORECASE)
# Fields that say whether an answer is wanted (KTO): TRL's name, LLaMA-Factory's, and words of others.
_WANTED = ("label", "kto_tag", "desirable", "preferred", "accepted", "chosen")
_KTO = {"prompt", "completion", "label"}
_MORE_OF_THE_QUESTION = ("input", "context", "passage")
_SYSTEM = ("system", "system_prompt", "systemInstruction", "system_instruction")
_NOT_FOR_TEMPLATES = ("messages", "id", *(rejected for _, rejected in _PREFERENCES), *_WANTED, *_SYSTEM)
_LONGEST_VALUE = 2_000  # a longer text of a row is no switch of a template

Record = Mapping[str, Any]
Kind = Literal["text", "turns", "pair", "preference"]

# A list of dictionaries as Python writes it, not JSON: str(messages), or a column of objects written as CSV.
_PYTHON_NOTATION = re.compile(r"\s*(?:array\(\s*)?[\[(]?\s*\{\s*'")
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")


@dataclass(frozen=True)
class Form:
    """Format of a file's records.

    Attributes:
        kind: of what the fields hold.
        name: the field, or fields, as shown to the user.
        parts: field of each part: ``turns`` or ``text``; of a pair ``question`` and ``answer``, and where there are any
            ``more``, ``history``, ``system``.
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


@dataclass(frozen=True)
class Unclear:
    """The reason why no format was found.

    Attributes:
        why: ``missing``: the field that was named is not there; ``turns``: each record is one turn of a conversation;
            ``python``: a field holds Python's notation of a list; ``structure``: the field that was named holds JSON;
            ``many``: several fields could be meant; ``none``: no field holds text.
        fields: those to choose from, or the one that is meant.
    """

    why: Literal["missing", "turns", "python", "structure", "many", "none"]
    fields: tuple[str, ...]

    def told(self, where: str, name: str, wanted: str | None) -> tuple[str, str, str]:
        """Return what happened, why, and what to do.

        Args:
            where: the data as the user named them.
            name: of the file.
            wanted: the field that the user named.
        """
        fields = ", ".join(map(_quoted, self.fields[:20])) or "none"
        one = _quoted(self.fields[0]) if self.fields else ""
        if self.why == "missing":
            return (
                f"There is no field {wanted!r} in {where}.",
                f"The fields of {name} are {fields}.",
                "Choose one of them with --text_field.",
            )
        if self.why == "turns":
            return (
                f"Each record of {where} is a single turn of a conversation, not a document.",
                f"The fields of {name} are {fields}: the student would learn an answer without its question.",
                "Put all turns of a conversation into one record, as a list under 'messages' "
                '({"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}).',
            )
        if self.why == "python":
            return (
                f"The field {one} of {where} holds lists in Python's own notation (repr), not JSON.",
                "Quotes and line breaks in it cannot be parsed reliably, and as plain text its brackets would "
                "be learned.",
                "Write the lists with json.dumps(), or the whole table as .jsonl.",
            )
        if self.why == "structure":
            return (
                f"The field {one} of {where} holds JSON, not prose.",
                "It is not a conversation in a known format, and the student would learn its brackets and keys as "
                "text.",
                "Write the training text as plain text, or as a conversation under 'messages'.",
            )
        if self.why == "none":
            return (
                f"No field of {where} holds text.",
                f"The fields of {name} are {fields}.",
                "Give data in which one field of each record is a text.",
            )
        return (
            f"It is not clear which field of {where} holds the text.",
            f"The fields of {name} are {fields}.",
            "Choose one of them with --text_field: its text alone is learned. For questions with answers name the two "
            "fields prompt and completion.",
        )


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


def choose_form(records: Sequence[Record], wanted: str | None) -> Form | Unclear:
    """Detect the format of a file's records from the first of them.

    Args:
        records: the first records.
        wanted: the field that the user named.
    """
    return _by_looking(records) if wanted is None else _as_wanted(records, wanted)


def text_fields(records: Sequence[Record]) -> list[str]:
    """Fields that hold text, in the order in which they come."""
    return list(dict.fromkeys(name for record in records for name, value in record.items() if is_text(value)))


def all_fields(records: Sequence[Record]) -> list[str]:
    """Every field, in the order in which they come."""
    return list(dict.fromkeys(name for record in records for name in record))


def is_text(value: object) -> bool:
    """Return whether a value is a text that is not empty."""
    return isinstance(value, str) and not value.isspace() and value != ""


def is_conversation_as_text(text: str) -> bool:
    """Return whether a text is nothing but the turns of a conversation, written as JSON or by Python."""
    if text.lstrip()[:1] not in ("[", "{") or not ("role" in text[:500] or "from" in text[:500]):
        return False
    return bool(_PYTHON_NOTATION.match(text)) or _has_turns(json_value(text))


def conversation_of(record: Record, form: Form) -> Conversation:
    """The conversation that a record of this form makes.

    Raises:
        UnusableTurns: it makes none.
    """
    if form.within is not None:
        inner = json_value(record.get(form.within))
        if not isinstance(inner, dict):
            raise UnusableTurns(f"record whose {_quoted(form.within)} holds no conversation")
        record = {**record, **inner}
    parts, notes = form.parts, []
    if form.kind != "preference" and _is_unwanted(record):
        raise UnusableTurns(NOT_WANTED)
    if form.kind == "turns":
        value = _decoded(record.get(parts["turns"]))
        if not are_turns(value):
            raise UnusableTurns(f"record whose {_quoted(parts['turns'])} holds no conversation")
        messages = read_turns(value)
    elif form.kind == "pair":
        messages = _pair(record, parts)
    else:
        notes.append(PREFERENCE)
        messages = _chosen(record, parts)
    system = _system(record)
    if system and not any(turn["role"] in ("system", "developer") for turn in messages):
        messages = (system, *messages)
    if _has_image(record) and any("<image>" in turn["content"] for turn in messages):
        raise UnusableTurns("conversation with an image part")
    asked = _decoded(record.get(parts.get("question", "")))
    more = asked if isinstance(asked, Mapping) else {}  # OpenAI's input: messages, tools
    fields = _for_templates({**record, **more}, {*parts.values(), form.within or ""})
    return Conversation(messages, fields, tuple(notes))


def _as_wanted(records: Sequence[Record], wanted: str) -> Form | Unclear:
    values = [record[wanted] for record in records if wanted in record]
    if not values:
        return Unclear("missing", tuple(all_fields(records)))
    if _often(records, is_turn):
        return Unclear("turns", tuple(all_fields(records)))
    if any(are_turns(_decoded(value)) for value in values):
        return Form("turns", wanted, {"turns": wanted})
    texts = [value for value in values if is_text(value)]
    if _often(texts, _is_python):
        return Unclear("python", (wanted,))
    if _often(texts, _is_structure):
        return _within(records, wanted) or Unclear("structure", (wanted,))
    return Form("text", wanted, {"text": wanted})


def _by_looking(records: Sequence[Record]) -> Form | Unclear:
    """Conversations before plain text, and those that say most about themselves first."""
    if _often(records, is_turn) and not any(_turn_fields(records)):
        return Unclear("turns", tuple(all_fields(records)))
    turns = [name for name in _turn_fields(records) if not _REJECTED.search(name)]
    named = [name for name in CHAT_FIELDS if name in turns]
    whole = [name for name in (*named, *turns) if _mostly(records, name, _is_answered)]
    if named and named[0] in whole:
        return Form("turns", named[0], {"turns": named[0]})
    other = _preference_form(records) or _pair_form(records)
    if other:
        return other
    if turns:
        chosen = (*whole, *named, *turns)[0]
        return Form("turns", chosen, {"turns": chosen})
    texts = text_fields(records)
    for name in texts:
        if _mostly(records, name, _is_python):
            return Unclear("python", (name,))
        form = _within(records, name)
        if form:
            return form
    return _prose(records, texts)


def _prose(records: Sequence[Record], texts: list[str]) -> Form | Unclear:
    structures = {name for name in texts if _mostly(records, name, _is_structure)}
    prose = [name for name in texts if name not in structures]
    for name in TEXT_FIELDS:
        if name in prose and _mostly(records, name, is_text):
            return Form("text", name, {"text": name})
    # Of one field alone there is no doubt, unless it holds single words: a version, a name, a path.
    if len(prose) == 1 and _mostly(records, prose[0], _is_prose) and not _lacks_its_answer(records, prose[0]):
        return Form("text", prose[0], {"text": prose[0]})
    if prose:
        return Unclear("many", tuple(prose))
    if structures:
        return Unclear("structure", tuple(name for name in texts if name in structures))
    return Unclear("none", tuple(all_fields(records)))


def _is_prose(value: object) -> bool:
    return len(str(value).split()) > 1


def _lacks_its_answer(records: Sequence[Record], name: str) -> bool:
    """Return whether a field holds questions, and others hold lists or objects, such as answers to choose from."""
    others = [other for other in all_fields(records) if other != name]
    return name.lower() in QUESTIONS and any(
        _mostly(records, other, lambda value: isinstance(_decoded(value), list | dict)) for other in others
    )


def _turn_fields(records: Sequence[Record]) -> list[str]:
    """Fields that hold the turns of a conversation in most records, as a list or as JSON."""
    return [name for name in all_fields(records) if _mostly(records, name, lambda value: are_turns(_decoded(value)))]


def _pair_form(records: Sequence[Record]) -> Form | None:
    names = {name.lower(): name for name in reversed(all_fields(records))}

    def held(known: Sequence[str]) -> str | None:
        return next(
            (names[name] for name in known if name in names and _mostly(records, names[name], _says)),
            None,
        )

    question, answer = held((*QUESTIONS, *CHAT_FIELDS)), held(ANSWERS)
    if question is None or answer is None:
        return None
    parts = {"question": question, "answer": answer}
    more = held([name for name in _MORE_OF_THE_QUESTION if names.get(name) != question]) or next(
        (names[name] for name in _MORE_OF_THE_QUESTION if name in names and names[name] != question), None
    )
    if more:
        parts["more"] = more
    if "history" in names:
        parts["history"] = names["history"]
    return Form("pair", " + ".join(name for name in (question, more, answer) if name), parts)


def _preference_form(records: Sequence[Record]) -> Form | None:
    for chosen, rejected in _PREFERENCES:
        if not _often([_says(record.get(chosen)) and rejected in record for record in records], bool):
            continue
        question = next((name for name in (*QUESTIONS, *CHAT_FIELDS) if _mostly(records, name, _says)), None)
        if question is None and not _mostly(records, chosen, _is_whole):
            continue
        parts = {"answer": chosen} | ({"question": question} if question else {})
        return Form("preference", f"{question} + {chosen}" if question else chosen, parts)
    return None


def _is_whole(chosen: object) -> bool:
    """Return whether a chosen answer brings its question: turns, or a transcript."""
    return are_turns(_decoded(chosen)) or (isinstance(chosen, str) and len(_transcript(chosen)) > 1)


def _within(records: Sequence[Record], name: str) -> Form | None:
    """The form of the records that stand as JSON in one field, where they are conversations."""
    inner = [value for record in records if isinstance(value := json_value(record.get(name)), dict)]
    if 2 * len(inner) < len(records) or not inner:
        return None
    form = _by_looking(inner)
    if isinstance(form, Unclear) or not form.is_chat or form.within is not None:
        return None
    return Form(form.kind, f"{name}: {form.name}", form.parts, within=name)


def _pair(record: Record, parts: Mapping[str, str]) -> Messages:
    question, answer = _spoken(record.get(parts["question"])), _spoken(record.get(parts["answer"]))
    if question is None or answer is None:
        raise UnusableTurns("record without a question and its answer")
    more = record.get(parts.get("more", ""))
    if isinstance(question, str) and is_text(more):
        question = f"{question}\n{more}"
    turns = (*_asked(question), *_answered(answer))
    return (*_history(record.get(parts.get("history", ""))), *turns)


def _chosen(record: Record, parts: Mapping[str, str]) -> Messages:
    chosen, question = _spoken(record.get(parts["answer"])), _spoken(record.get(parts.get("question", "")))
    if chosen is None:
        raise UnusableTurns("preference row without a chosen answer")
    if isinstance(chosen, str):
        transcript = _transcript(chosen)
        answer = read_turns(transcript) if len(transcript) > 1 else _answered(chosen)
    else:
        answer = read_turns(chosen)
    if any(turn["role"] == "user" for turn in answer):
        return answer
    if question is None:
        raise UnusableTurns("record without a question and its answer")
    return (*_asked(question), *answer)


def _asked(question: str | list[Any]) -> Messages:
    """A question's turns. Answers that were given before it are read, not learned."""
    if isinstance(question, str):
        transcript = _transcript(question)
        turns = read_turns(transcript) if len(transcript) > 1 else ({"role": "user", "content": question},)
    else:
        turns = read_turns(question)
    return tuple({**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in turns)


def _answered(answer: str | list[Any]) -> Messages:
    return ({"role": "assistant", "content": answer},) if isinstance(answer, str) else read_turns(answer)


def _history(value: object) -> Messages:
    """Alpaca's history: earlier questions with their answers, in pairs; or turns."""
    value = _decoded(value)
    if are_turns(value):
        return read_turns(value)  # type: ignore[arg-type]
    if not isinstance(value, list):
        return ()
    turns: list[Turn] = []
    for pair in value:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise UnusableTurns("record whose history is no list of questions with answers")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return tuple(turns)


def _transcript(text: str) -> list[Turn]:
    """The turns of a text that is written as ``Human: …`` and ``Assistant: …``, a blank line between them."""
    found = list(_TRANSCRIPT.finditer(text))
    if not found or text[: found[0].start()].strip():
        return []
    ends = [match.start() for match in found[1:]] + [len(text)]
    turns = [
        {"role": "user" if match[1] == "Human" else "assistant", "content": text[match.end() : end].strip()}
        for match, end in zip(found, ends, strict=True)
    ]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()  # a prompt that ends with "Assistant:"
    return turns


def _system(record: Record) -> Turn | None:
    value = next((record[name] for name in _SYSTEM if record.get(name)), None)
    if isinstance(value, str):
        value = {"content": value} if is_text(value) else None
    if not isinstance(value, Mapping):
        return None
    turn = read_turns([{"role": "system", "content": value.get("content", value)}])[0]
    return turn if is_text(turn["content"]) else None


def _for_templates(record: Record, used: set[str]) -> dict[str, Any]:
    """Fields other than the turns that a template may use."""
    found = {}
    for name, value in record.items():
        decoded = _decoded(value)
        is_long = isinstance(decoded, str) and len(decoded) > _LONGEST_VALUE
        if name not in used and name not in _NOT_FOR_TEMPLATES and decoded not in (None, "", []) and not is_long:
            found[name] = decoded
    more = found.pop("chat_template_kwargs", None)
    return {**found, **more} if isinstance(more, dict) else found


def _is_unwanted(record: Record) -> bool:
    """Return whether a record says that its answer is not wanted. 0 is clear where it can mean nothing else."""
    values = {name: str(record.get(name)).lower() for name in _WANTED}
    if "false" in values.values() or values["kto_tag"] in ("0", "0.0"):
        return True
    return {name for name in record if name != "id"} == _KTO and values["label"] in ("0", "0.0", "-1", "-1.0")


def _is_answered(value: object) -> bool:
    """Return whether turns have one of an assistant."""
    turns = _decoded(value)
    return are_turns(turns) and any(is_answer(turn) for turn in turns)


def _has_image(record: Record) -> bool:
    return any(record.get(name) for name in ("image", "images", "video", "videos", "audio", "audios"))


def _has_turns(value: object) -> bool:
    if isinstance(value, dict):
        return any(are_turns(inner) for inner in value.values())
    return are_turns(value)


def _decoded(value: object) -> Any:
    """A value as it is meant: what stands as JSON in a text is read from it."""
    decoded = json_value(value)
    return value if decoded is None else decoded


def _says(value: object) -> bool:
    """Return whether a value can be a question or an answer."""
    return _spoken(value) is not None


def _spoken(value: object) -> str | list[Any] | None:
    """A question or an answer: turns, also as JSON, or a text; an answer in JSON that is no turns is a text."""
    decoded = _decoded(value)
    if is_turn(decoded):
        return [decoded]
    if isinstance(decoded, Mapping):
        decoded = decoded.get("messages")
    if are_turns(decoded):
        turns: list[Any] = decoded
        return turns
    return value if isinstance(value, str) and is_text(value) else None


def _is_python(value: object) -> bool:
    return isinstance(value, str) and bool(_PYTHON_NOTATION.match(value)) and json_value(value) is None


def _is_structure(value: object) -> bool:
    return json_value(value) is not None


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:57] + "...")


def _mostly(records: Sequence[Record], name: str, holds: Callable[[Any], bool]) -> bool:
    """Return whether it is so for a field of at least half of the records."""
    return _often([record.get(name) for record in records], holds)


def _often(values: Sequence[Any], holds: Callable[[Any], bool]) -> bool:
    """Return whether it is so for at least half of the values, and for one."""
    count = sum(map(holds, values))
    return count > 0 and 2 * count >= len(values)
