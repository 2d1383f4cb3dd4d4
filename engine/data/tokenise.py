"""From texts and conversations to token ids, with the tokenizer of the models.

A text gets no special tokens (the packer puts them between documents). A conversation goes through the tokenizer's chat
template, and only what the assistant says is trained on: found by the template's own marks where it has them, else by
rendering the conversation up to each answer. Where that cannot be told faithfully the conversation is left out and
counted. Knows nothing of files and rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from engine.data.packing import TokenisedDocument
from engine.data.pieces import cut_text
from engine.errors import DataError

Messages = tuple[dict[str, str], ...]

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")

# A longer text is tokenised in parts, cut at paragraph borders: the tokenizer works on parts at once, and on long ones
# slower (3 MB in parts of 32k characters took 1.2 s of CPU and 20 MB, in parts of 512k 1.9 s and 165 MB).
_SEGMENT_CHARACTERS = 32_768

NO_ANSWER = "conversation without an answer"
UNFAITHFUL = "conversation in which the chat template does not keep earlier turns as they were"
REFUSED = "conversation that the chat template refuses"


class DocumentTokeniser:
    """Tokenises documents.

    Args:
        tokenizer: a fast tokenizer of transformers.
        name: the folder it came from, for messages.

    Attributes:
        skipped: conversations that were left out, reason to count.
        bos_id: the token that the tokenizer puts before each text, for models that were trained to see one; None when
            it puts none.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                f"The tokenizer in {name} is a slow one.",
                "Texts are tokenised by the fast kind (tokenizer.json).",
                "Convert it once with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder).",
            )
        self._tokenizer = tokenizer
        self._name = name
        self._has_marks = bool(_GENERATION_MARK.search(_template_of(tokenizer)))
        self.skipped: Counter[str] = Counter()
        self.bos_id = _leading_bos(tokenizer)

    def texts(self, texts: Sequence[str]) -> list[TokenisedDocument]:
        """Tokenise plain texts; ones that give no token come back empty."""
        if not texts:
            return []
        segments = [cut_text(text, _SEGMENT_CHARACTERS) for text in texts]
        encoded = self._tokenizer(
            [segment for parts in segments for segment in parts],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids = iter(encoded["input_ids"])
        return [TokenisedDocument([token for _ in parts for token in next(ids)]) for parts in segments]

    def conversation(self, messages: Messages) -> TokenisedDocument | None:
        """Tokenise a conversation; None when it was left out, and counted.

        Raises:
            DataError: the tokenizer has no chat template.
        """
        if not self._tokenizer.chat_template:
            raise DataError(
                f"The data are conversations, and the tokenizer in {self._name} has no chat template.",
                "It says how a conversation is written for the model.",
                "Choose a model that was trained to chat, or name a field with plain text (--text_field).",
            )
        if not any(message["role"] == "assistant" for message in messages):
            self.skipped[NO_ANSWER] += 1
            return None
        try:
            document = self._by_marks(messages) if self._has_marks else self._by_prefixes(messages)
        except _template_errors() as error:
            del error  # the template's own words may quote the data
            self.skipped[REFUSED] += 1
            return None
        if document is None:
            self.skipped[UNFAITHFUL] += 1
        elif not any(document.trained or ()):
            self.skipped[NO_ANSWER] += 1
            return None
        return document

    def _by_marks(self, messages: Messages) -> TokenisedDocument:
        encoded = self._tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return TokenisedDocument(list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]])

    def _by_prefixes(self, messages: Messages) -> TokenisedDocument | None:
        """Render up to each answer with and without it: what comes in between is the answer.

        Some templates change earlier turns when later ones follow (they drop the reasoning). Then the beginning of the
        conversation is not what was rendered, and None says so.
        """
        whole = self._render(messages)
        answers: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._render(messages[:number], add_generation_prompt=True)
                after = self._render(messages[: number + 1])
                if not (whole.startswith(after) and after.startswith(before)):
                    return None
                answers.append((len(before), len(after)))
        encoded = self._tokenizer(
            whole, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        # A token that begins before the answer is not all the assistant's.
        trained = [
            any(first <= start and end <= last and start < end for first, last in answers)
            for start, end in encoded["offset_mapping"]
        ]
        return TokenisedDocument(list(encoded["input_ids"]), trained)

    def _render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text


def _template_of(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template or ""


def _leading_bos(tokenizer: Any) -> int | None:
    """The beginning-of-text id, if the tokenizer itself puts it before a text."""
    bos_id: int | None = tokenizer.bos_token_id
    with_special = tokenizer("a", verbose=False)["input_ids"]
    without = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    return bos_id if bos_id is not None and with_special[:1] == [bos_id] and without[:1] != [bos_id] else None


def _template_errors() -> tuple[type[Exception], ...]:
    """What a chat template raises on messages it does not take: its own refusal, or a field it expects."""
    from jinja2 import TemplateError

    return (TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError)
