"""Content of a turn that is a list of parts: texts, thoughts, tool calls and results, in each vendor's notation.

Known are OpenAI's and Anthropic's parts with a ``type``, Gemini's ``parts`` and Bedrock's blocks, which name themselves
by their key. A part that a text model cannot read (an image) makes the conversation unusable, which is reported. Knows
nothing of roles, fields and tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning")
_CALLS = ("tool_use", "toolUse", "functionCall", "function_call")
_RESULTS = ("tool_result", "toolResult", "functionResponse", "function_response")
_REASONS = ("reasoningContent", "reasoning_content")
_FILES = {"inlineData": "file", "inline_data": "file", "fileData": "file", "file_data": "file"}
# Keys beside a part's own that say nothing of what the part holds.
_BESIDE = ("thought", "thoughtSignature", "thought_signature", "cache_control", "cachePoint", "signature", "citations")


class UnusableTurns(Exception):
    """Why a conversation cannot be used: a noun phrase in the singular, without a word of the text."""


NO_TEXT = "conversation with a turn whose content is no text"


@dataclass
class Content:
    """Parts of a turn, sorted.

    Attributes:
        texts: what is said.
        thoughts: the reasoning before it.
        calls: tool calls, as templates expect them.
        results: what tools gave back: ``content``, and the call's number and the tool's name where they are known.
    """

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


def is_part(part: object) -> bool:
    """Return whether a value is a text, or an object in the notation of one of the vendors."""
    if isinstance(part, Mapping):
        return "type" in part or _key_of(part) is not None
    return isinstance(part, str)


def read_content(parts: list[Any]) -> Content:
    """Sort the parts of a turn.

    Raises:
        UnusableTurns: one of them is no text, thought, call or result.
    """
    found = Content()
    for part in parts:
        if isinstance(part, str):
            found.texts.append(part)
        elif isinstance(part, Mapping):
            _read_part(part, found)
        else:
            raise UnusableTurns(NO_TEXT)
    return found


def _read_part(given: Mapping[str, Any], found: Content) -> None:
    part = {key: value for key, value in given.items() if value is not None}
    kind = part.get("type") or _key_of(part)
    value = part.get(str(kind), part) if "type" not in part else part
    if kind in _TEXTS:
        text = part.get("text", "")
        if not isinstance(text, str):
            raise UnusableTurns(NO_TEXT)
        (found.thoughts if part.get("thought") is True else found.texts).append(text)
    elif kind in _THOUGHTS or kind in _REASONS:
        found.thoughts.append(_thought(value))
    elif kind in _CALLS and isinstance(value, Mapping) and isinstance(value.get("name"), str):
        found.calls.append(_call(value))
    elif kind in _RESULTS and isinstance(value, Mapping):
        found.results.append(_result(value))
    elif isinstance(kind, str):
        kind = _FILES.get(kind, kind).removeprefix("input_").removesuffix("_url")
        raise UnusableTurns(f"conversation with {'an' if kind[:1] in 'aeiou' else 'a'} {kind} part")
    elif kind is None and {"type", "text"} & given.keys():
        return  # a part that says nothing, as some write it beside a tool call
    else:
        raise UnusableTurns(NO_TEXT)


def _key_of(part: Mapping[str, Any]) -> str | None:
    """The key by which a part without a ``type`` names itself; None where it does not."""
    known = ("text", *_CALLS, *_RESULTS, *_REASONS, *_FILES)
    named = [key for key in known if part.get(key) is not None]
    if named:
        return named[0]
    others = [key for key in part if key not in _BESIDE and part[key] is not None]
    # Bedrock's image, document and video: one key with an object with its format and bytes.
    is_file = (
        len(others) == 1 and isinstance(part[others[0]], Mapping) and {"format", "source"} <= part[others[0]].keys()
    )
    return others[0] if is_file else None


def _thought(value: Any) -> str:
    """Anthropic's ``thinking``, Bedrock's ``reasoningText``, or the text of a reasoning part."""
    if isinstance(value, Mapping):
        inner = value.get("reasoningText") or value.get("reasoning_text") or value
        value = next((inner[key] for key in ("thinking", "reasoning", "text") if isinstance(inner.get(key), str)), None)
    if not isinstance(value, str):
        raise UnusableTurns("conversation with a thought that is no text")
    return value


def _call(value: Mapping[str, Any]) -> dict[str, Any]:
    arguments: Any = next((value[key] for key in ("input", "args", "arguments") if value.get(key) is not None), {})
    call = {"type": "function", "function": {"name": value["name"], "arguments": arguments}}
    number = value.get("id") or value.get("toolUseId")
    return {**call, "id": number} if number else call


def _result(value: Mapping[str, Any]) -> dict[str, Any]:
    given = next((value[key] for key in ("content", "response", "output") if value.get(key) is not None), "")
    result: dict[str, Any] = {"content": _result_text(given)}
    number = value.get("tool_use_id") or value.get("toolUseId") or value.get("id")
    names = {"tool_call_id": number, "name": value.get("name")}
    return result | {key: name for key, name in names.items() if name}


def _result_text(given: Any) -> str:
    """Return a tool's result as text: its texts, or its values in JSON."""
    if isinstance(given, str):
        return given
    parts = given if isinstance(given, list) else [given]
    if isinstance(given, list) and parts and all(isinstance(part, Mapping) and "json" in part for part in parts):
        return "\n".join(as_json(part["json"]) for part in parts)
    if isinstance(given, list) and all(map(is_part, parts)):
        inner = read_content(parts)
        if inner.calls or inner.results:
            raise UnusableTurns(NO_TEXT)
        return "".join(inner.texts)
    return as_json(given)


def as_json(value: Any) -> str:
    """A value in JSON, as a text of a turn."""
    return json.dumps(value, ensure_ascii=False, default=str)
