"""Tools that a conversation offers, converted from each vendor's notation to the one that chat templates read.

Templates read a list of ``{"type": "function", "function": {"name", "description", "parameters"}}``, or of bare
functions. Anthropic, Gemini and Bedrock write the same under other keys, OpenAI's older files under ``functions``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine.data.spoken import decoded
from engine.data.turns import Messages

TOOL_FIELDS = ("tools", "functions", "toolConfig", "tool_config")
_GEMINIS = ("functionDeclarations", "function_declarations")
_SCHEMAS = ("input_schema", "inputSchema")


def tools_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The tools of a record under ``tools``; nothing where it has none.

    A value that is not understood stays as it is; the tokenisation reports that the template does not write it.
    """
    name = next((name for name in TOOL_FIELDS if fields.get(name)), None)
    if name is None:
        return {}
    value = decoded(fields[name])
    if isinstance(value, Mapping):
        value = value.get("tools", [value])
    if not isinstance(value, list):
        return {"tools": value}
    given = [decoded(tool) for tool in value]
    if not all(isinstance(tool, Mapping) for tool in given):
        return {"tools": value}
    tools = [tool for each in given for tool in _functions(each)]
    return {"tools": [_wrapped(tool) for tool in tools] if name == "functions" else tools}


def is_listed(messages: Messages) -> bool:
    """Return whether a system turn lists the tools itself, as Hermes's do: a template would write them again."""
    return any(
        turn["role"] == "system" and "<tools>" in turn["content"] and "</tools>" in turn["content"] for turn in messages
    )


def _functions(tool: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One tool as templates read it; of Gemini's, each function that it declares."""
    declared = next((tool[name] for name in _GEMINIS if isinstance(tool.get(name), list)), None)
    if declared is not None:
        yield from ({"type": "function", "function": dict(each)} for each in declared if isinstance(each, Mapping))
        return
    specification = tool.get("toolSpec")
    function = specification if isinstance(specification, Mapping) else tool
    schema = next((function[name] for name in _SCHEMAS if isinstance(function.get(name), Mapping)), None)
    if schema is None or "function" in tool:
        yield dict(tool)
        return
    kept = {name: function[name] for name in ("name", "description") if name in function}
    yield {"type": "function", "function": {**kept, "parameters": schema.get("json", schema)}}


def _wrapped(tool: dict[str, Any]) -> dict[str, Any]:
    return tool if "function" in tool else {"type": "function", "function": tool}
