"""Names of control tokens in people's texts, such as ``<|im_end|>`` in a question about chat templates.

A tokenizer reads such a name as the token: a question could end its own turn, and a sentence about a token would be
learned as the token. So in a conversation only what the chat template writes itself becomes a control token, and the
same characters in a turn stay characters. A plain text keeps its control tokens where it is written in them (it begins
or ends with one, or a line holds nothing else: a rendered conversation, documents joined with ``<|endoftext|>``).

Tokens of thoughts and tool calls (``<think>``) are no control tokens here: data write them into answers on purpose.

The characters are kept apart by a second tokenizer with the same ids, in which the control tokens have names that
no text has. It is built when it is first needed. Knows nothing of files and rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.data.second_tokenizer import SecondTokenizer, private_name
from engine.data.turns import Messages, Turn

AS_TEXT = "conversation with the name of a control token in its text (read as text, not as the token)"
ENDED_TWICE = "answer with a control token at its end (taken off: the chat template ends the answer)"
NOT_APART = "{} with the name of a control token in its text, which this tokenizer reads as the token"
UNKNOWN_CHARACTERS = "{} with characters that the tokenizer does not know (its unknown token is not learned)"
TEXT_AS_TEXT = "text with the name of a control token within a sentence (read as text, not as the token)"
TEXT_AS_TOKENS = "text written with the model's control tokens (read as these tokens)"

_NOT_CONTROL = re.compile(r"think|thought|reason|tool|call|function|python|argument", re.IGNORECASE)
_HEAD, _TAIL = "zqx", "xqz"  # around the number of a token, in place of its name


@dataclass(frozen=True)
class Encoded:
    """A text as token ids.

    Attributes:
        text: that was tokenised.
        ids: its tokens.
        offsets: of each token the first character and the one behind it.
    """

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


class ControlTokens:
    """The control tokens of a tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers; nothing of it is changed.
        template: the source of its chat template; added tokens that it writes are control tokens, even if the
            tokenizer does not call them special.
        vocab_size: tokens from this id on have no row in the models, and stay what they are; None for no such bound.
    """

    def __init__(self, tokenizer: Any, template: str, vocab_size: int | None = None) -> None:
        self._tokenizer = tokenizer
        special = set(tokenizer.all_special_ids)
        self._ids = {
            token.content: token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if (token.special or token_id in special or token.content in template)
            and (vocab_size is None or token_id < vocab_size)
            and len(token.content.strip()) > 1
            and not _NOT_CONTROL.search(token.content)
        }
        self._names = sorted(self._ids, key=lambda name: (-len(name), name))
        self._begins = sorted({name[:2] for name in self._names})
        named = "|".join(map(re.escape, self._names)) or r"(?!)"
        self._named = re.compile(named)
        self._anywhere = re.compile(rf"(?P<name>{named})|{_HEAD}(?P<number>\d+){_TAIL}")
        self._written_in = re.compile(rf"\A\s*(?:{named})|(?:{named})\s*\Z|^[ \t]*(?:{named})[ \t]*$", re.MULTILINE)
        self._renamed: SecondTokenizer | None = None

    def is_in(self, text: str) -> bool:
        """Return whether the name of a control token is in a text."""
        return any(begin in text for begin in self._begins) and bool(self._named.search(text))

    def first_end(self, text: str, start: int) -> int | None:
        """Where the first name of a control token behind a place in a text ends; None if there is none."""
        found = self._named.search(text, start)
        return found.end() if found else None

    def is_written_in(self, text: str) -> bool:
        """Return whether a text uses the tokens as such: at its begin or end, or alone on a line."""
        return bool(self._written_in.search(text))

    def are_in(self, *values: Any) -> bool:
        """Return whether the name of a control token is in a text of these objects."""
        return any(map(self.is_in, _texts(values)))

    def without_ends(self, messages: Messages) -> tuple[Messages, int]:
        """The conversation without control tokens at the ends of its answers, and how many answers had them."""
        turns = tuple(self._without_end(turn) for turn in messages)
        return turns, sum(turn is not before for turn, before in zip(turns, messages, strict=True))

    def _without_end(self, turn: Turn) -> Turn:
        if turn["role"] != "assistant" or not self.is_in(turn["content"]):
            return turn
        shorter = turn["content"].rstrip()
        if not shorter.endswith(tuple(self._names)):
            return turn
        while name := next((name for name in self._names if shorter.endswith(name)), ""):
            shorter = shorter.removesuffix(name).rstrip()
        return {**turn, "content": shorter}

    def guarded(self, value: Any) -> Any:
        """A copy of an object in which marks stand in place of the names, for a chat template to write."""
        if isinstance(value, str):
            if not self.is_in(value):
                return value
            return self._named.sub(lambda found: f"{_HEAD}{self._ids[found[0]]}{_TAIL}", value)
        if isinstance(value, Mapping):
            return {key: self.guarded(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.guarded(inner) for inner in value)
        return value

    def ids_of_text(self, text: str) -> list[int]:
        """Token ids of a text, none of them a control token.

        Raises:
            NotApart: this tokenizer has no second one.
        """
        return self._second().encode(text)[0]

    def encoded(self, written: str, spans: list[tuple[int, int]]) -> tuple[Encoded, list[tuple[int, int]]]:
        """Token ids of a template's output for a guarded conversation.

        Args:
            written: the template's output, with marks.
            spans: places in it.

        Returns:
            The tokens, and the same spans as places in their text.

        Raises:
            NotApart: this tokenizer has no second one.
        """
        names = {token_id: name for name, token_id in self._ids.items()}
        parts: list[str] = []
        borders = [(0, 0)]  # of the stretches: where they begin in the output, and in the text
        size = behind = 0
        for found in self._anywhere.finditer(written):
            is_mark = found["number"] is not None and int(found["number"]) in names
            new = names[int(found["number"])] if is_mark else found[0]
            if found["name"] is not None:
                new = private_name(self._ids[found[0]])
            parts += [written[behind : found.start()], new]
            size += found.start() - behind
            borders.append((found.start(), size))
            size += len(new)
            behind = found.end()
            borders.append((behind, size))
        parts.append(written[behind:])
        text = "".join(parts)

        def moved(place: int) -> int:
            start, new_start = next(border for border in reversed(borders) if border[0] <= place)
            return new_start + place - start

        ids, offsets = self._second().encode(text)
        return Encoded(text, ids, offsets), [(moved(first), moved(last)) for first, last in spans]

    def _second(self) -> SecondTokenizer:
        if self._renamed is None:
            self._renamed = SecondTokenizer(self._tokenizer.backend_tokenizer, self._ids)
        return self._renamed


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in _texts(inner)]
    return []
