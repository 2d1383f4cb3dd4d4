"""Turns of a conversation, converted from all supported formats to the one that chat templates read.

A turn has a ``role`` and a ``content`` (always a text, empty if there is none), and keeps all other fields: tool calls,
a name, the reasoning before an answer. ``weight`` 0 marks an answer that is context only. blocks.py reads contents that
are lists of parts. Knows nothing of tokens and fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from engine.data.blocks import NO_TEXT, UnusableTurns, as_json, is_part, read_content

Turn = dict[str, Any]
Messages = tuple[Turn, ...]

_ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
_CONTENT_KEYS = ("content", "value", "text", "message", "utterance", "parts")
_ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "ai_assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "gemini": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "tool_output": "tool",
    "function_result": "tool",
    "ipython": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
_GPT = re.compile(r"(?:chat_?)?gpt_?\d.*")  # gpt-4, GPT-3.5-turbo
KNOWN_ROLES = frozenset(_ROLES.values())
_CALLS = ("function_call", "tool_call")
# Whether a turn is learned: OpenAI's and axolotl's name, ms-swift's, those of axolotl's older forms, and others'.
_WEIGHTS = (
    *("weight", "loss", "train", "training", "loss_mask", "loss_weight", "trainable"),
    *("train_on", "train_on_turn", "is_trained", "learn", "supervised"),
)
# The opposite: the turn is not learned where they are true.
_NO_WEIGHTS = ("ignore", "ignored", "masked", "is_masked", "skip", "exclude", "no_loss")
_ASKED = ("input", "human", "user", "question", "prompt", "instruction", "query")
_ANSWERED = ("output", "assistant", "answer", "response", "completion", "gpt", "bot")
# A call as glaive's data sets write it: JSON but for the arguments, which stand in single quotes.
_QUOTED_ARGUMENTS = re.compile(r"""\s*\{\s*"name":\s*"([^"]+)",\s*"arguments":\s*'(.*)'\s*\}\s*""", re.DOTALL)


def is_turn(value: object) -> bool:
    """Return whether a value is one turn: it says who speaks, in a word that is known, and what."""
    if not isinstance(value, Mapping):
        return False
    keys = _keys(value)
    return keys is not None and _role(value[keys[0]]) is not None


def is_answer(turn: Mapping[str, Any]) -> bool:
    """Return whether the assistant says a turn, as its data write it."""
    keys = _keys(turn)
    return keys is not None and _role(turn[keys[0]]) == "assistant"


def are_turns(value: object) -> bool:
    """Return whether a value is a list of turns; what a ``role`` is called does not matter here."""
    if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
        return False
    return all(is_turn(turn) or _is_role_and_content(turn) for turn in value)


def turns_of_columns(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Turns of ``{"role": […], "content": […]}``, as the datasets library holds a sequence of them; None for others."""
    if not value or not all(isinstance(column, list) for column in value.values()):
        return None
    if len({len(column) for column in value.values()}) != 1:
        return None
    turns = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    return turns if are_turns(turns) else None


def turns_of_pairs(value: list[Any]) -> list[dict[str, Any]] | None:
    """Turns of ``[{"input": …, "output": …}, …]``, a question with its answer each; None for any other list."""
    found: list[dict[str, Any]] = []
    for pair in value:
        if not isinstance(pair, Mapping):
            return None
        asked = [key for key in pair if key.lower() in _ASKED and isinstance(pair[key], str)]
        answered = [key for key in pair if key.lower() in _ANSWERED and isinstance(pair[key], str)]
        if len(asked) != 1 or len(answered) != 1 or _keys(pair) is not None:
            return None
        if isinstance(pair.get("system"), str) and pair["system"].strip() and not found:
            found.append({"role": "system", "content": pair["system"]})
        found += [{"role": "user", "content": pair[asked[0]]}, {"role": "assistant", "content": pair[answered[0]]}]
    return found or None


def turns_of_keys(value: list[Any]) -> list[dict[str, Any]] | None:
    """Turns of ``[{"user": …}, {"assistant": …}]``, in which the key says who speaks; None for any other list."""
    found: list[dict[str, Any]] = []
    for turn in value:
        if not isinstance(turn, Mapping):
            return None
        said = {key: text for key, text in turn.items() if text is not None}
        if len(said) != 1:
            return None
        ((key, text),) = said.items()
        if not isinstance(text, str) or _role(key) is None:
            return None
        found.append({"role": str(_role(key)), "content": text})
    return found if any(turn["role"] == "assistant" for turn in found) else None


def read_turns(value: Iterable[Mapping[str, Any]]) -> Messages:
    """Turns as chat templates read them.

    Raises:
        UnusableTurns: a turn has content that is not text, or an unknown speaker.
    """
    return tuple(_with_thoughts(turn for raw in value for turn in _turns(raw)))


def told(messages: Messages) -> str:
    """A conversation as one text: shown in a preview, and hashed to identify it."""
    return "\n\n".join(map(_told, messages))


def is_learned(turn: Mapping[str, Any]) -> bool:
    """Return whether a turn may be learned: the assistant says it, and its weight is not 0."""
    return turn["role"] == "assistant" and turn.get("weight", 1) != 0


def is_empty(turn: Mapping[str, Any]) -> bool:
    """Return whether a turn has neither words nor calls nor thoughts."""
    return not (turn["content"] or "").strip() and not turn.keys() - {"role", "content", "name"}


def unread_flags(conversations: Iterable[object]) -> list[str]:
    """Keys of answers that hold both true and false, or 1 and 0, and are not read: it is not known what they mean."""
    found: dict[str, set[bool]] = {}
    for turns in conversations:
        for raw in turns if isinstance(turns, list) else ():
            if is_turn(raw) and is_answer(raw):
                for key in raw.keys() - {*_WEIGHTS, *_NO_WEIGHTS}:
                    if _is_number(raw[key]):
                        found.setdefault(key, set()).add(bool(_number(raw[key])))
    return sorted(key for key, values in found.items() if len(values) == 2)


def _is_role_and_content(turn: Mapping[str, Any]) -> bool:
    if "from" in turn and "value" in turn:
        return True
    return "role" in turn and any(key in turn for key in (*_CONTENT_KEYS, "tool_calls", *_CALLS))


def _role(named: object) -> str | None:
    """The role that a speaker's name means: ``assistant`` for `` GPT-4 ``; None for a name that is not known."""
    name = _plain_name(named)
    return "assistant" if _GPT.fullmatch(name) else _ROLES.get(name)


def _plain_name(named: object) -> str:
    return re.sub(r"[\s_-]+", "_", str(named).strip().rstrip(":").lower())


def _told(turn: Turn) -> str:
    rest = {key: value for key, value in turn.items() if key not in ("role", "content", "weight")}
    said = f"{turn['role']}: {turn['content']}"
    return f"{said}\n{json.dumps(rest, ensure_ascii=False, default=str)}" if rest else said


def _keys(turn: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """The keys that say who speaks and what; the second is None where nothing is said."""
    role = next((key for key in _ROLE_KEYS if isinstance(turn.get(key), str)), None)
    if role is None:
        return None
    content = next((key for key in _CONTENT_KEYS if turn.get(key) is not None), None)
    if content is None and role != "role":
        return None
    return role, content


def _turns(raw: Mapping[str, Any]) -> list[Turn]:
    """One turn; before it those of the tools whose results stand in it."""
    keys = _keys(raw)
    if keys is None:
        raise UnusableTurns("conversation with a turn that does not say who speaks")
    role_key, content_key = keys
    named = raw[role_key]
    role = _role(named)
    if role is None:
        if role_key != "role":
            raise UnusableTurns("conversation whose speakers are not user, assistant, system or tool")
        role = named
    content = raw.get(content_key) if content_key else None
    left = {key: value for key, value in raw.items() if key not in (role_key, content_key) and value is not None}
    weight = 1
    for key in _WEIGHTS:
        if key in left and _is_number(left[key]):
            weight = min(weight, _number(left.pop(key)))
    for key in _NO_WEIGHTS:
        if key in left and _is_number(left[key]):
            weight = min(weight, 1 - _number(left.pop(key)))
    said, calls, results = _said(content, role)
    turn: Turn = {"role": role, **said}
    calls += [*_list(left.pop("tool_calls", None)), *_list(left.pop("function_call", None))]
    if _plain_name(named) in _CALLS and turn["content"].strip():
        calls, turn["content"] = calls_in(turn["content"]), ""
    if calls:
        turn["tool_calls"] = [_call(call) for call in calls]
    left.pop("content", None)  # empty, beside the key that holds it
    turn = {**left, **turn}
    if role == "assistant" and weight == 0:
        turn["weight"] = 0
    whole = {"role": turn.pop("role"), "content": turn.pop("content"), **turn}
    if not results:
        return [whole]
    given = [{"role": "tool", "content": result.pop("content"), **left, **result} for result in results]
    return [*given, whole] if whole["content"].strip() or calls else given


def _said(content: object, role: str) -> tuple[Turn, list[Any], list[Turn]]:
    """The content as text with the thoughts before it, the tool calls in it, and results of tools."""
    if content is None:
        return {"content": ""}, [], []
    if isinstance(content, str):
        return {"content": content}, [], []
    if isinstance(content, Mapping):
        parts = content.get("parts")
        content = parts if isinstance(parts, list) else [content]
        if role == "tool" and not is_part(content[0]):
            return {"content": as_json(dict(content[0]))}, [], []
    if isinstance(content, list):
        if role == "tool" and not all(map(is_part, content)):
            return {"content": as_json(content)}, [], []
        found = read_content(content)
        thought = {"reasoning_content": "".join(found.thoughts)} if found.thoughts else {}
        return {"content": "".join(found.texts), **thought}, list(found.calls), found.results
    if role == "tool":  # a result that is a number, or true
        return {"content": as_json(content)}, [], []
    raise UnusableTurns(NO_TEXT)


def calls_in(text: str) -> list[Any]:
    """The tool calls that a text is, in JSON or as glaive's data sets write them.

    Raises:
        UnusableTurns: it is anything else.
    """
    quoted = _QUOTED_ARGUMENTS.fullmatch(text)
    value = {"name": quoted[1], "arguments": json_value(quoted[2])} if quoted else json_value(text)
    calls = value if isinstance(value, list) else [value]
    are_calls = all(isinstance(call, Mapping) and ("name" in call or "function" in call) for call in calls)
    if calls and are_calls and (not quoted or isinstance(calls[0]["arguments"], dict)):
        return calls
    raise UnusableTurns("conversation with a tool call that is not written in JSON")


def _with_thoughts(turns: Iterable[Turn]) -> Iterator[Turn]:
    """The turns, with those of gpt-oss's ``analysis`` channel as the thoughts of the answers behind them."""
    thoughts: list[str] = []
    for turn in turns:
        if turn["role"] == "assistant" and turn.get("channel") == "analysis" and not turn.get("tool_calls"):
            thoughts.append(turn["content"])
            continue
        if thoughts:
            if turn["role"] != "assistant":
                raise UnusableTurns("conversation with a thought that no answer follows")
            turn = {**turn, "reasoning_content": "\n".join(thoughts)}
            thoughts = []
        yield turn
    if thoughts:
        raise UnusableTurns("conversation with a thought that no answer follows")


def _call(call: object) -> object:
    """A tool call as templates expect it: the function under its own key, the arguments as an object."""
    if not isinstance(call, Mapping):
        return call
    call = {key: value for key, value in call.items() if value is not None}
    function = call.get("function")
    if not isinstance(function, Mapping):
        if "name" not in call:
            return call
        function = {key: call.pop(key) for key in ("name", "arguments", "parameters") if key in call}
    function = {key: value for key, value in function.items() if value is not None}
    if "arguments" not in function and "parameters" in function:
        function["arguments"] = function.pop("parameters")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        value = json_value(arguments)
        function["arguments"] = value if isinstance(value, dict) else arguments
    return {"type": "function", **call, "function": function}


def json_value(text: object) -> Any:
    """The list or object that a text is in JSON; None for any other text, and for what is no text."""
    value = text if isinstance(text, str) else None
    for _ in range(2):  # of a list that went through json.dumps() twice the first turn gives a text
        if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{", '"'):
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list | dict) else None


def _list(value: object) -> list[Any]:
    value = json_value(value) if isinstance(value, str) else value
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or str(value).lower() in ("0", "1", "0.0", "1.0", "true", "false")


def _number(value: Any) -> int:
    """0 or 1: an answer is learned or not."""
    if isinstance(value, str):
        value = value.lower() not in ("0", "0.0", "false")
    return int(value > 0)
