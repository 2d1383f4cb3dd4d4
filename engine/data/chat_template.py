"""Rendering of a conversation with a tokenizer's chat template, without losing parts of it.

Templates accept different inputs. One refuses system turns, another drops them silently; one expects the arguments of a
tool call as an object, another as text. The conversation is tried unchanged first, and then in other common notations.
All changes, and parts that the template cannot write, are reported.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import inspect
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.data.answers import left_out
from engine.data.turns import KNOWN_ROLES, Messages, Turn

PLAIN_TEMPLATE = (
    "{%- for turn in messages -%}"
    "{{ '' if loop.first else '\n\n' }}{{ turn.role | capitalize }}:"
    "{{ ' ' + turn.content if turn.content else '' }}"
    "{%- if turn.tool_calls %}{{ ' ' }}{{ turn.tool_calls | tojson }}{% endif -%}"
    "{%- if turn.role == 'assistant' %}{{ eos_token }}{% endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif -%}"
)
"""For tokenizers without a template of their own: who speaks, a colon, what is said; an answer ends the text."""

SYSTEM_MOVED = "system turn that the chat template does not take (put before the next user turn)"
DEVELOPER_AS_SYSTEM = "developer turn that the chat template does not take (written as a system turn)"
CALL_LOST = "answer with a tool call that the chat template does not write (read, not learned)"
TOOLS_LOST = "conversation with tools that the chat template does not write"

CONSTANT = (
    "conversation of which the chat template writes nothing: it writes the same whatever is said (give the tokenizer a "
    "chat_template that writes its messages)"
)
TURN_LOST = "conversation with a turn that the chat template leaves out"
UNKNOWN_ROLE = "conversation with a role that the chat template does not name (name it user, assistant, system or tool)"
REFUSED = "conversation that the chat template refuses"


class _NoContent(str):
    """The content of a turn that says nothing but tool calls: an empty text for all who read turns here."""

    __slots__ = ()


NULL, ABSENT = _NoContent(), _NoContent()
"""Given to a template as null, and not given at all. Templates ask for one or the other (DeepSeek's for null)."""

# transformers 5.24 leaves out of a turn what is null, so the template puts it back before it reads the turns.
_WITH_NULLS = (
    "{%- set with_nulls = namespace(turns=[]) -%}{%- for turn in messages -%}"
    "{%- set with_nulls.turns = with_nulls.turns + [turn if 'content' in turn else dict(turn, content=none)] -%}"
    "{%- endfor -%}{%- set messages = with_nulls.turns -%}"
)

_PROBE = "zqvProbeOfPartsqvz"
GENERATION_MARK = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
_STRFTIME = re.compile(r"""strftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")
_UNDEFINED = re.compile(r"'(\w+)' is undefined")
_SYSTEMS = ("system", "developer")
_GIVEN_ALWAYS = ("messages", "add_generation_prompt", "raise_exception", "strftime_now", "namespace", "range", "dict")


class TemplateRefuses(Exception):
    """The template rejects a conversation; the text is the template's own reason."""


class UnknownRole(TemplateRefuses):
    """The template would write a role that it does not name, such as a customer's, as it stands."""


@dataclass(frozen=True)
class Written:
    """A conversation rendered by the template.

    Attributes:
        messages: the turns that the template received.
        fields: the other fields that it received.
        text: its output.
        notes: changes, and parts that are not in the text.
    """

    messages: Messages
    fields: Mapping[str, Any]
    text: str
    notes: tuple[str, ...]


class ChatTemplate:
    """A tokenizer's chat template, or the plain one if it has none.

    Args:
        tokenizer: of transformers; nothing of it is changed.

    Attributes:
        is_plain: whether the tokenizer has none.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.is_plain = not tokenizer.chat_template
        self._source: str | None = PLAIN_TEMPLATE if self.is_plain else None
        self._variables: dict[str, set[str]] = {}
        self._now = datetime.datetime.now()

    def has_marks(self, fields: Mapping[str, Any]) -> bool:
        """Return whether the template itself marks what the assistant writes (``{% generation %}``)."""
        return bool(GENERATION_MARK.search(self.source(fields)))

    def source(self, fields: Mapping[str, Any]) -> str:
        """The template that is used: there may be one for conversations with tools."""
        if self._source is not None:
            return self._source
        try:
            return str(self._tokenizer.get_chat_template(None, fields.get("tools")))
        except ValueError as error:
            names = ", ".join(sorted(self._tokenizer.chat_template))
            raise TemplateRefuses(f"of the tokenizer's chat templates {names} none is named default") from error

    def all_sources(self) -> str:
        """The text of all its templates, where there are several by name."""
        if self._source is not None:
            return self._source
        templates = self._tokenizer.chat_template
        return "\n".join(templates.values()) if isinstance(templates, dict) else str(templates)

    def fields_for(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a record's fields that the template asks for."""
        fields = {name: given[name] for name in ("tools", "documents") if _are_objects(given.get(name))}
        source = self.source(fields)
        if source not in self._variables:
            self._variables[source] = _variables(source) - _reserved(self._tokenizer)
        return {name: value for name, value in given.items() if name in self._variables[source]} | fields

    def render(
        self, messages: Sequence[Turn], fields: Mapping[str, Any], *, add_generation_prompt: bool = False
    ) -> str:
        """Return the template's output.

        Raises:
            TemplateRefuses: it rejects the conversation.
        """
        text: str = self._applied(messages, fields, tokenize=False, add_generation_prompt=add_generation_prompt)
        return text

    def marks(self, messages: Sequence[Turn], fields: Mapping[str, Any]) -> list[bool]:
        """Return for each token of the output whether it is inside the template's own marks.

        Raises:
            TemplateRefuses: it takes no such conversation.
        """
        encoded = self._applied(messages, fields, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return [bool(mark) for mark in encoded["assistant_masks"]]

    def write(self, messages: Messages, given: Mapping[str, Any]) -> Written:
        """Render the conversation in the first notation of which the template writes all parts.

        Args:
            messages: the turns.
            given: the other fields of the record.

        Raises:
            TemplateRefuses: it rejects all notations.
            UnknownRole: it does not name a role.
            LeavesOut: it omits a turn of the user or of a tool.
        """
        if not all(self._names(turn["role"]) for turn in messages):
            raise UnknownRole
        fields = self.fields_for(given)
        best: tuple[int, Written] | None = None
        refusal: TemplateRefuses | None = None
        for turns, notes in _system_ways(messages):
            for said, others in itertools.product(_call_ways(turns), _tool_ways(fields)):
                try:
                    text = self.render(said, others)
                except TemplateRefuses as error:
                    refusal = refusal or error
                    continue
                lost = self._lost(said, others, text)
                if any(said[number]["role"] not in (*_SYSTEMS, "assistant") for number in lost):
                    raise LeavesOut
                calls = sum(not calls_written(turn, text) for turn in said)
                is_written = self._writes_tools(said, others, text) and ("tools" in others or not given.get("tools"))
                tools = () if is_written else (TOOLS_LOST,)
                count = 100 * len(lost) + calls + len(tools)
                if best is None or count < best[0]:
                    best = count, Written(said, others, text, (*notes, *tools))
                if not count:
                    break
            if best is not None and best[0] < 100:
                break
        if best is None:
            raise refusal or TemplateRefuses("")
        if best[0] >= 100:
            raise LeavesOut
        return best[1]

    def _names(self, role: str) -> bool:
        """Return whether a role is one that all templates know, or one that this template names."""
        source = self.all_sources()
        return role in KNOWN_ROLES or f"'{role}'" in source or f'"{role}"' in source

    def _lost(self, messages: Messages, fields: Mapping[str, Any], text: str) -> list[int]:
        """Turns other than the assistant's of which nothing is written."""

        def render(turns: Sequence[Turn], invites: bool) -> str | None:
            return rendered(self, turns, fields, invites)

        return left_out(render, messages, text)

    def _writes_tools(self, messages: Messages, fields: Mapping[str, Any], text: str) -> bool:
        """Return whether the tools that a record offers change anything."""
        without = {name: value for name, value in fields.items() if name != "tools"}
        return "tools" not in fields or rendered(self, messages, without, False) != text

    @functools.cached_property
    def _wants_parts(self) -> bool:
        """Whether the template reads contents as lists of parts alone, as those of models that see pictures do."""
        for content in (_PROBE, [{"type": "text", "text": _PROBE}]):
            with contextlib.suppress(*template_errors()):
                turns = [{"role": "user", "content": content}]
                text = self._tokenizer.apply_chat_template(turns, chat_template=self._source, tokenize=False)
                if _PROBE in text and "{'" not in text:  # not the parts in Python's notation
                    return content is not _PROBE
        return False

    @functools.cached_property
    def between(self) -> str:
        """The text behind an answer that stands before the next question and is no part of it; empty if unknown.

        A template that writes the end of a turn before the next one, and not behind the last, has it here.
        """
        asked = {"role": "user", "content": _PROBE}
        said = {"role": "assistant", "content": f"{_PROBE}x"}
        alone = rendered(self, [asked], {}, False)
        both = rendered(self, [asked, said, asked], {}, False)
        if alone is None or both is None or alone.count(_PROBE) != 1 or both.count(_PROBE) != 3:
            return ""
        opening = alone.partition(_PROBE)[0]
        behind = both.split(_PROBE)[2].removeprefix("x")
        for each in (opening, opening.removeprefix(self._tokenizer.bos_token or "")):
            if each and behind.endswith(each):
                return behind.removesuffix(each)
        return ""

    @functools.cached_property
    def is_constant(self) -> bool:
        """Whether the template writes the same whatever is said."""
        texts = [
            rendered(self, [{"role": "user", "content": said}, {"role": "assistant", "content": said}], {}, False)
            for said in (_PROBE, f"{_PROBE}x")
        ]
        return texts[0] is not None and texts[0] == texts[1]

    @functools.cached_property
    def always_invites(self) -> bool:
        """Whether each output ends with the invitation to answer, though none is asked for."""
        user, answer = {"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}
        asked = rendered(self, [user], {}, False)
        if asked is None or asked != rendered(self, [user], {}, True):
            return False
        answered = rendered(self, [user, answer], {}, False)
        continued = rendered(self, [user, answer, user], {}, False)
        return answered is not None and continued is not None and not continued.startswith(answered)

    def _applied(self, messages: Sequence[Turn], fields: Mapping[str, Any], **options: Any) -> Any:
        from jinja2 import TemplateSyntaxError

        turns = [
            {
                key: value
                for key, value in turn.items()
                if key != "weight" and not (key == "content" and isinstance(value, _NoContent))
            }
            for turn in messages
        ]
        if self._wants_parts:
            turns = [
                {**turn, "content": [{"type": "text", "text": turn["content"]}]} if turn.get("content") else turn
                for turn in turns
            ]
        source = self._source
        if "strftime_now" in self.source(fields):
            # One time for all outputs: they are compared, and a clock would advance between them.
            source = _STRFTIME.sub(lambda found: json.dumps(self._now.strftime(found[2])), self.source(fields))
        if any(turn["content"] is NULL for turn in messages):
            source = _WITH_NULLS + (source or self.source(fields))
        try:
            return self._tokenizer.apply_chat_template(turns, chat_template=source, **options, **fields)
        except template_errors() as error:
            if isinstance(error, TemplateSyntaxError):
                raise TemplateRefuses(f"line {error.lineno} of the template is no valid Jinja") from error
            said = str(error)
            # The template's words may quote the data; a sentence that stands in the template does not.
            undefined = _UNDEFINED.fullmatch(said)
            own = bool(said) and len(said) < 200 and (undefined[1] if undefined else said) in self.source(fields)
            raise TemplateRefuses(said if own else "") from error


class LeavesOut(Exception):
    """The template omits a turn, so an answer would be trained without its question."""


def why_not(template: ChatTemplate, error: TemplateRefuses | LeavesOut) -> str:
    """The reason for leaving out a conversation, by what :meth:`ChatTemplate.write` raised."""
    if isinstance(error, LeavesOut):
        return CONSTANT if template.is_constant else TURN_LOST
    if isinstance(error, UnknownRole):
        return UNKNOWN_ROLE
    return f"{REFUSED} ({error})" if str(error) else REFUSED


def rendered(template: ChatTemplate, messages: Sequence[Turn], fields: Mapping[str, Any], invites: bool) -> str | None:
    """Return the template's output; None if it refuses."""
    try:
        return template.render(messages, fields, add_generation_prompt=invites)
    except TemplateRefuses:
        return None


def calls_written(turn: Turn, text: str) -> bool:
    """Return whether every tool call of a turn is in a text, by the name of its function."""
    return all(name in text for name in _call_names(turn))


def _call_names(turn: Turn) -> list[str]:
    calls = [call.get("function") for call in turn.get("tool_calls") or () if isinstance(call, dict)]
    return [call["name"] for call in calls if isinstance(call, dict) and isinstance(call.get("name"), str)]


def _system_ways(messages: Messages) -> Iterator[tuple[Messages, tuple[str, ...]]]:
    """The conversation as it is; with developers as systems; with all of both before what the user says."""
    yield messages, ()
    developers = sum(turn["role"] == "developer" for turn in messages)
    systems = sum(turn["role"] in _SYSTEMS for turn in messages)
    if developers:
        renamed = tuple({**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in messages)
        yield renamed, (DEVELOPER_AS_SYSTEM,) * developers
    if systems:
        moved = _moved(messages)
        if moved is not None:
            yield moved, (SYSTEM_MOVED,) * systems


def _moved(messages: Messages) -> Messages | None:
    """Each system turn at the beginning of the next user turn; None where none follows."""
    waiting: list[str] = []
    turns: list[Turn] = []
    for turn in messages:
        if turn["role"] in _SYSTEMS:
            waiting.append(turn["content"])
        elif turn["role"] == "user" and waiting:
            turns.append({**turn, "content": "\n\n".join([*waiting, turn["content"]])})
            waiting = []
        else:
            turns.append(turn)
    return None if waiting else tuple(turns)


def _call_ways(messages: Messages) -> Iterator[Messages]:
    """Tool calls with an empty content, with null and with none, with their arguments as an object and as JSON."""
    yield messages
    if any(turn.get("tool_calls") for turn in messages):
        for as_text, content in list(itertools.product((False, True), ("", NULL, ABSENT)))[1:]:
            yield tuple(_call_way(turn, content, as_text=as_text) for turn in messages)


def _call_way(turn: Turn, content: str, *, as_text: bool) -> Turn:
    if not turn.get("tool_calls"):
        return turn
    changed = dict(turn)
    if isinstance(content, _NoContent) and not turn["content"].strip():
        changed["content"] = content
    if as_text:
        changed["tool_calls"] = [_with_text_arguments(call) for call in turn["tool_calls"]]
    return changed


def _with_text_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _tool_ways(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Tools as they are; those that are bare functions under the key that OpenAI's form has."""
    yield fields
    tools = fields.get("tools") or []
    if any("function" not in tool for tool in tools):
        wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
        yield {**fields, "tools": wrapped}


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _variables(source: str) -> set[str]:
    """Return the variables that a template reads without setting them."""
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return meta.find_undeclared_variables(environment.parse(GENERATION_MARK.sub("", source)))
    except TemplateError:
        return set()


def _reserved(tokenizer: Any) -> set[str]:
    """Names that are no record's to set: what the template always gets, and the settings of the call itself."""
    options = inspect.signature(tokenizer.apply_chat_template).parameters
    return {*_GIVEN_ALWAYS, *tokenizer.special_tokens_map, *options}


def template_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a chat template for messages that it rejects: its own refusal, or a missing field."""
    from jinja2 import TemplateError

    return (TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError)
