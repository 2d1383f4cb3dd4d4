"""Go's text/template and Ollama's reading of a Modelfile, as far as an export uses them: two small readers for tests.

After https://pkg.go.dev/text/template and Ollama's docs/modelfile.mdx and docs/template.mdx.
"""

from __future__ import annotations

import ast
import re
from typing import Any

_ACTION = re.compile(r"{{(.*?)}}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\(|\)|:=|[^\s()]+')


def fields(text: str) -> list[tuple[str, str]]:
    """The instructions of a Modelfile with their values, in order; quotes are taken off."""
    found = []
    lines = iter(text.split("\n"))
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        if name == "PARAMETER":
            name, _, value = value.partition(" ")
        for quote in ('"""', '"'):
            if value.startswith(quote):
                while not (len(value) >= 2 * len(quote) and value.rstrip().endswith(quote)):
                    value += "\n" + next(lines)
                value = value.strip()[len(quote) : -len(quote)]
                break
        found.append((name.lower(), "".join(each for each in value if each.isprintable() or each in "\n\t")))
    return found


def fill(template: str, values: dict[str, Any]) -> str:
    """The text that a template writes: variables, ranges over lists, conditions, eq, len, slice and and."""
    pieces: list[tuple[bool, str]] = []
    rest = 0
    for action in _ACTION.finditer(template):
        pieces += [(False, template[rest : action.start()]), (True, action[1].strip())]
        rest = action.end()
    pieces.append((False, template[rest:]))
    text, place = _block(pieces, 0, {"$": values}, runs=True)
    assert place == len(pieces)
    return text


def ollama_fill(template: str, messages: list[dict[str, str]]) -> str:
    """The prompt that Ollama makes of a conversation: it joins the system turns."""
    system = "\n\n".join(turn["content"] for turn in messages if turn["role"] == "system")
    turns = [{"Role": turn["role"], "Content": turn["content"]} for turn in messages]
    return fill(template, {"Messages": turns, "System": system})


def _block(pieces: list[tuple[bool, str]], place: int, names: dict[str, Any], *, runs: bool) -> tuple[str, int]:
    """Run pieces up to the end or the else of their block; returns the text and the place of that piece."""
    text = ""
    while place < len(pieces):
        is_action, words = pieces[place]
        if not is_action:
            text += words if runs else ""
        elif words.startswith(("end", "else")):
            return text, place
        elif words.startswith("if "):
            part, place = _condition(pieces, place, words[3:], names, runs=runs)
            text += part
        elif words.startswith("range "):
            named, _, over = words[6:].partition(":=")
            number, item = (each.strip() for each in named.split(","))
            start = place + 1
            _, place = _block(pieces, start, names, runs=False)
            for count, value in enumerate(_value(over, names) if runs else ()):
                names[number], names[item] = count, value
                text += _block(pieces, start, names, runs=True)[0]
        elif runs and re.match(r"\$\w+ :?= ", words):
            name, _, value = words.partition("=")
            names[name.strip(" :")] = _value(value, names)
        elif runs:
            text += str(_value(words, names))
        place += 1
    return text, place


def _condition(
    pieces: list[tuple[bool, str]], place: int, asked: str, names: dict[str, Any], *, runs: bool
) -> tuple[str, int]:
    holds = runs and bool(_value(asked, names))
    text, place = _block(pieces, place + 1, names, runs=holds)
    words = pieces[place][1]
    if words.startswith("else if "):
        part, place = _condition(pieces, place, words[8:], names, runs=runs and not holds)
        return text + part, place
    if words == "else":
        part, place = _block(pieces, place + 1, names, runs=runs and not holds)
        text += part
    assert pieces[place][1] == "end"
    return text, place


def _value(words: str, names: dict[str, Any]) -> Any:
    stack: list[list[Any]] = [[]]
    for word in _WORD.findall(words):
        if word == "(":
            stack.append([])
        elif word == ")":
            inner = stack.pop()
            stack[-1].append(_call(inner))
        else:
            stack[-1].append(_atom(word, names))
    return _call(stack[0])


def _call(parts: list[Any]) -> Any:
    first, *given = parts
    if not callable(first):
        assert not given
        return first
    return first(*given)


def _atom(word: str, names: dict[str, Any]) -> Any:
    if word in ("true", "false"):
        return word == "true"
    if word.isdigit():
        return int(word)
    if word.startswith('"'):
        return ast.literal_eval(word)
    if word.startswith((".", "$")):
        name, _, field = word.partition(".")
        value = names[name or "$"]
        return value[field] if field else value
    functions = {
        "eq": lambda one, two: one == two,
        "len": len,
        "slice": lambda items, start: items[start:],
        "and": lambda *each: next((one for one in each if not one), each[-1]),
    }
    return functions[word]
