"""Detection of the fields of a record that hold text or a conversation.

The first records of a file determine them. A conversation is one field (``messages``, ShareGPT's ``conversations``),
two fields with a question and its answer (``prompt`` and ``completion``, Alpaca's ``instruction`` and ``output``), or
preferences (``chosen`` and ``rejected``, OpenAI's ``preferred_output``); each of these may be JSON in a text. Otherwise
a field with a usual name is plain text, otherwise the only field with text. Further guesses would risk training on the
wrong text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.data.beside import MORE_OF_THE_QUESTION, asks_to_choose, number_as_text
from engine.data.form import (
    ANSWERS,
    CHAT_FIELDS,
    NUMBERED_ANSWERS,
    PAIRS,
    PREFERENCES,
    PROGRAMS,
    QUESTIONS,
    TEXT_FIELDS,
    Form,
    mostly,
    often,
)
from engine.data.known_sets import known_form
from engine.data.spoken import Record, decoded, is_text, quoted, spoken
from engine.data.transcripts import is_answered as is_transcript
from engine.data.turns import are_turns, is_answer, is_turn, json_value

_REJECTED = re.compile(r"reject|non_?preferred|dispreferred|negative|worse|worst|\blos(?:e|er|ing)\b", re.IGNORECASE)
# A text beside these is part of what is asked, or an answer to it.
_ASKS = ("question", "query", "instruction", "problem")
# Pairs of an input and an output under these names belong to an instruction beside them: Self-Instruct's, and shots.
_EXAMPLES = ("instances", "examples", "shots", "few_shot_examples", "demonstrations", "exemplars")
_TITLES = ("title", "name", "subject", "headline", "topic")
# A list of dictionaries as Python writes it, not JSON: str(messages), or a column of objects written as CSV.
_PYTHON_NOTATION = re.compile(r"\s*(?:array\(\s*)?(?:[\[(]\s*)?\{\s*'")


@dataclass(frozen=True)
class Unclear:
    """The reason why no format was found.

    Attributes:
        why: ``missing``: the field that was named is not there; ``turns``: each record is one turn of a conversation;
            ``python``: a field holds Python's notation of a list; ``structure``: the field that was named holds JSON;
            ``many``: several fields could be meant; ``none``: no field holds text; ``header``: the first row of a table
            holds text instead of names.
        fields: those to choose from, or the one that is meant.
    """

    why: Literal["missing", "turns", "python", "structure", "many", "none", "header"]
    fields: tuple[str, ...]

    def told(self, where: str, name: str, wanted: str | None) -> tuple[str, str, str]:
        """Return what happened, why, and what to do.

        Args:
            where: the data as the user named them.
            name: of the file.
            wanted: the field that the user named.
        """
        fields = ", ".join(map(quoted, self.fields[:20])) or "none"
        one = quoted(self.fields[0]) if self.fields else ""
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
        if self.why == "header":
            return (
                f"The first row of {name} does not name its columns.",
                f"It holds {fields}, which would be lost as names.",
                "Write a row of names above it: text for a column of texts, prompt and completion for questions with "
                "answers. If these are names, choose one of them with --text_field.",
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


def choose_form(records: Sequence[Record], wanted: str | None) -> Form | Unclear:
    """Detect the format of a file's records from the first of them.

    Args:
        records: the first records.
        wanted: the field that the user named.
    """
    return _by_looking(records) if wanted is None else _as_wanted(records, wanted)


def without_header(form: Form | Unclear | None, records: Sequence[Record]) -> Unclear | None:
    """Why a table has no field to read if its first row holds texts instead of names; None where it names them."""
    names = all_fields(records)
    if isinstance(form, Form) and (form.is_chat or form.name.lower() in TEXT_FIELDS):
        return None
    has_words = any(len(name.split()) > 3 for name in names)
    is_data = any(map(_is_sentence, names)) or (has_words and (len(names) == 1 or any(map(_is_digits, names))))
    return Unclear("header", tuple(names)) if is_data else None


def _is_sentence(name: str) -> bool:
    """Return whether the name of a column is rather a text: long, several words up to a full stop, or a comment."""
    words = len(name.split())
    return (
        words > 8
        or (words > 2 and name.startswith("#"))
        or len(name) > 80
        or (words > 2 and name.rstrip()[-1:] in tuple(".!?。！？"))
    )


def _is_digits(name: str) -> bool:
    return name.strip().replace(".", "", 1).isdigit()


def text_fields(records: Sequence[Record]) -> list[str]:
    """Fields that hold text, in the order in which they come."""
    return list(dict.fromkeys(name for record in records for name, value in record.items() if is_text(value)))


def all_fields(records: Sequence[Record]) -> list[str]:
    """Every field, in the order in which they come."""
    return list(dict.fromkeys(name for record in records for name in record))


def is_conversation_as_text(text: str) -> bool:
    """Return whether a text is nothing but the turns of a conversation, written as JSON or by Python."""
    if text.lstrip()[:1] not in ("[", "{", '"') or not ("role" in text[:500] or "from" in text[:500]):
        return False
    return bool(_PYTHON_NOTATION.match(text)) or _has_turns(json_value(text))


def _as_wanted(records: Sequence[Record], wanted: str) -> Form | Unclear:
    values = [record[wanted] for record in records if wanted in record]
    if not values:
        return Unclear("missing", tuple(all_fields(records)))
    if often(records, is_turn):
        return Unclear("turns", tuple(all_fields(records)))
    if any(are_turns(decoded(value)) for value in values):
        return Form("turns", wanted, {"turns": wanted})
    known = known_form(records)
    if known and known.parts.get("turns", known.parts.get("tree")) == wanted:
        return known
    texts = [value for value in values if is_text(value)]
    if often(texts, _is_python):
        return Unclear("python", (wanted,))
    if often(texts, _is_structure):
        return _within(records, wanted) or Unclear("structure", (wanted,))
    return Form("text", wanted, {"text": wanted})


def _by_looking(records: Sequence[Record]) -> Form | Unclear:
    """Conversations before plain text, and those that say most about themselves first."""
    if often(records, is_turn) and not any(_turn_fields(records)):
        return Unclear("turns", tuple(all_fields(records)))
    turns = [name for name in _turn_fields(records) if not _REJECTED.search(name)]
    named = [name for known in CHAT_FIELDS for name in turns if name.lower() == known]
    whole = [name for name in (*named, *turns) if mostly(records, name, _is_answered)]
    other = _preference_form(records) or _pair_form(records)
    if named and named[0] in whole:
        is_question = mostly(records, named[0], _ends_with_question)
        if other and is_question and other.parts.get("question") == named[0]:
            return other
        return Form("turns", named[0], {"turns": named[0]})
    other = other or (None if turns else known_form(records))
    if other:
        return other
    if turns:
        if not named and len(_different(records, whole or turns)) > 1:
            return Unclear("many", tuple(whole or turns))
        chosen = (*whole, *named, *turns)[0]
        return Form("turns", chosen, {"turns": chosen})
    texts = text_fields(records)
    for name in texts:
        if mostly(records, name, _is_python):
            return Unclear("python", (name,))
        form = _within(records, name)
        if form:
            return form
    return _named_pair(records, texts) or _prose(records, texts)


def _named_pair(records: Sequence[Record], texts: list[str]) -> Form | None:
    """Two fields that are a question and its answer by both names, and the only ones with texts."""
    names = {name.lower(): name for name in reversed(texts)}
    prose = {
        name for name in texts if mostly(records, name, lambda value: _is_prose(value) and not _is_structure(value))
    }
    has_tests = any("test_list" in record for record in records)
    for asked, answered in (*PAIRS, *(PROGRAMS if has_tests else ())):
        question, answer = names.get(asked), names.get(answered)
        if question not in prose or answer is None or not prose <= {question, answer}:
            continue
        if mostly(records, answer, is_text) and not asks_to_choose(records, answer):
            return Form("pair", f"{question} + {answer}", {"question": question, "answer": answer})
    return None


def _prose(records: Sequence[Record], texts: list[str]) -> Form | Unclear:
    structures = {name for name in texts if mostly(records, name, _is_structure)}
    prose = [name for name in texts if name not in structures]
    asks = any(name.lower() in _ASKS for name in prose)
    for name in () if asks else (name for known in TEXT_FIELDS for name in prose if name.lower() == known):
        if mostly(records, name, is_text):
            return Form("text", name, {"text": name})
    # Of one field alone there is no doubt, unless it holds single words: a version, a name, a path.
    if len(prose) == 1 and mostly(records, prose[0], _is_prose) and not _lacks_its_answer(records, prose[0]):
        richer = [name for name in all_fields(records) if _is_richer(records, name, prose[0])]
        return Unclear("structure", tuple(richer)) if richer else Form("text", prose[0], {"text": prose[0]})
    if prose:
        named = any(mostly(records, name, _is_prose) for name in prose)
        richer = [] if named else [name for name in all_fields(records) if _is_richer(records, name, prose[0])]
        return Unclear("structure", tuple(richer)) if richer else Unclear("many", tuple(prose))
    if structures:
        return Unclear("structure", tuple(name for name in texts if name in structures))
    return Unclear("none", tuple(all_fields(records)))


def _is_prose(value: object) -> bool:
    return len(str(value).split()) > 1


def _is_richer(records: Sequence[Record], name: str, prose: str) -> bool:
    """Return whether a list or an object holds the text of which a field is the title, or more text than the field."""
    if not mostly(records, name, lambda value: bool(value) and isinstance(decoded(value), list | dict)):
        return False
    return prose.lower() in _TITLES or often(
        [_letters(record.get(name)) > _letters(record.get(prose)) for record in records], bool
    )


def _letters(value: object, depth: int = 0) -> int:
    """Characters of the words in a value; of single words, such as names and links, none."""
    value = decoded(value)
    if isinstance(value, str):
        return len(value) if _is_prose(value) else 0
    if depth > 8:
        return 0
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(_letters(each, depth + 1) for each in inner)


def _lacks_its_answer(records: Sequence[Record], name: str) -> bool:
    """Return whether a field holds questions, and others hold the answers, or lists or objects to choose from."""
    others = [other for other in all_fields(records) if other != name]
    return name.lower() in QUESTIONS and any(
        other.lower() in ANSWERS or mostly(records, other, lambda value: isinstance(decoded(value), list | dict))
        for other in others
    )


def _turn_fields(records: Sequence[Record]) -> list[str]:
    """Fields that hold the turns of a conversation in most records, as a list or as JSON."""
    return [
        name
        for name in all_fields(records)
        if name.lower() not in _EXAMPLES and mostly(records, name, lambda value: are_turns(decoded(value)))
    ]


def _different(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """Fields whose conversations are not those of one before them: two models' answers, several languages."""
    found: list[str] = []
    for name in names:
        if not any(_mostly_same(records, name, other) for other in found):
            found.append(name)
    return found


def _mostly_same(records: Sequence[Record], name: str, other: str) -> bool:
    return often([decoded(record.get(name)) == decoded(record.get(other)) for record in records], bool)


def _pair_form(records: Sequence[Record]) -> Form | None:
    names = {name.lower(): name for name in reversed(all_fields(records))}

    def held(known: Sequence[str]) -> str | None:
        return next(
            (names[name] for name in known if name in names and mostly(records, names[name], _says)),
            None,
        )

    question = held((*QUESTIONS, *CHAT_FIELDS))
    answer = held(ANSWERS) or next(
        (names[name] for name in NUMBERED_ANSWERS if name in names and mostly(records, names[name], _is_number)), None
    )
    if question is None or answer is None or asks_to_choose(records, answer):
        return None
    more = [names[name] for name in MORE_OF_THE_QUESTION if name in names and names[name] != question]
    shown = next((name for name in more if mostly(records, name, is_text)), more[0] if more else None)
    parts = {"question": question, "answer": answer}
    return Form("pair", " + ".join(name for name in (question, shown, answer) if name), parts)


def _preference_form(records: Sequence[Record]) -> Form | None:
    for chosen, rejected in PREFERENCES:
        if not often([_says(record.get(chosen)) and rejected in record for record in records], bool):
            continue
        question = next((name for name in (*QUESTIONS, *CHAT_FIELDS) if mostly(records, name, _says)), None)
        if question is None and not mostly(records, chosen, _is_whole):
            continue
        parts = {"answer": chosen} | ({"question": question} if question else {})
        return Form("preference", f"{question} + {chosen}" if question else chosen, parts)
    return None


def _is_whole(chosen: object) -> bool:
    """Return whether a chosen answer brings its question: turns, or a transcript."""
    return are_turns(decoded(chosen)) or is_transcript(chosen)


def _within(records: Sequence[Record], name: str) -> Form | None:
    """The form of the records that stand as JSON in one field, where they are conversations."""
    inner = [value for record in records if isinstance(value := json_value(record.get(name)), dict)]
    if 2 * len(inner) < len(records) or not inner:
        return None
    form = _by_looking(inner)
    if isinstance(form, Unclear) or not form.is_chat or form.within is not None:
        return None
    return Form(form.kind, f"{name}: {form.name}", form.parts, within=name)


def _is_answered(value: object) -> bool:
    """Return whether turns have one of an assistant."""
    turns = decoded(value)
    return are_turns(turns) and any(is_answer(turn) for turn in turns)


def _ends_with_question(value: object) -> bool:
    """Return whether the last one of the turns is not the assistant's."""
    turns = decoded(value)
    return are_turns(turns) and not is_answer(turns[-1])


def _has_turns(value: object) -> bool:
    if isinstance(value, dict):
        return any(are_turns(inner) for inner in value.values())
    return are_turns(value)


def _says(value: object) -> bool:
    """Return whether a value can be a question or an answer."""
    return spoken(value) is not None


def _is_number(value: object) -> bool:
    return number_as_text(value) is not None


def _is_python(value: object) -> bool:
    return isinstance(value, str) and bool(_PYTHON_NOTATION.match(value)) and json_value(value) is None


def _is_structure(value: object) -> bool:
    return json_value(value) is not None
