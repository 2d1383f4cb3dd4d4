"""Lengths of conversations in a model's tokens, chat template included, for a plan and without transformers.

Renders with Jinja and counts with the tokenizers library alone, a few hundred milliseconds for a few hundred
conversations. tokenise.py decides which tokens are trained, with transformers' own rendering.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.data.chat_template import GENERATION_MARK, ChatTemplate, LeavesOut, TemplateRefuses, why_not
from engine.data.document import Document
from engine.model_files.vocabulary import Vocabulary


def conversation_lengths(documents: Sequence[Document], folder: Path, vocabulary: Vocabulary) -> list[int | str] | None:
    """Tokens of each conversation, in order; the reason in place of them for one that the template does not take.

    Args:
        documents: conversations; others are not counted.
        folder: of the model.
        vocabulary: of its tokenizer.

    Returns:
        None where the tokenizer is not in ``tokenizer.json``.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # it has no narrower one; what is wrong is said when the model is loaded
        return None
    template = ChatTemplate(_Light(vocabulary))
    found = [_written(template, document) for document in documents if document.messages is not None]
    ends = 1 if vocabulary.eos_id is not None else 0
    texts = [each for each, is_written in found if is_written]
    counts = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    return [len(next(counts).ids) + ends if is_written else each for each, is_written in found]


def _written(template: ChatTemplate, document: Document) -> tuple[str, bool]:
    """The output of the template, and true; or the reason why there is none, and false."""
    try:
        return template.write(document.messages or (), document.fields).text, True
    except (TemplateRefuses, LeavesOut) as error:
        return why_not(template, error), False


class _Light:
    """Parts of a tokenizer that a chat template needs, without transformers."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        named = {"bos_token": vocabulary.bos_id, "eos_token": vocabulary.eos_id}
        self.special_tokens_map = {
            name: vocabulary.tokens[number] for name, number in named.items() if number in vocabulary.tokens
        }
        self.chat_template = vocabulary.chat_template
        self._compiled: dict[str, Any] = {}

    def get_chat_template(self, chat_template: str | None, tools: object) -> str:
        """The only one."""
        del tools
        return chat_template or self.chat_template or ""

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        chat_template: str | None,
        tokenize: bool,
        add_generation_prompt: bool = False,
        **fields: Any,
    ) -> str:
        """Return the template's output for a conversation."""
        del tokenize
        source = self.get_chat_template(chat_template, None)
        if source not in self._compiled:
            self._compiled[source] = _compiled(source)
        turns = [{key: value for key, value in turn.items() if value is not None} for turn in conversation]
        given = {"tools": None, "documents": None, **self.special_tokens_map, **fields}
        text: str = self._compiled[source].render(messages=turns, add_generation_prompt=add_generation_prompt, **given)
        return text


def _compiled(source: str) -> Any:
    """A template with the functions that transformers gives to it.

    Source: transformers.utils.chat_template_utils (5.24).
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(GENERATION_MARK.sub(_trimmed_alike, source))


def _trimmed_alike(mark: Any) -> str:
    """In place of a mark of generation something that writes nothing and takes away the same blanks around it."""
    before, after = ("-" if found == "-" else "" for found in (mark[0][2], mark[0][-3]))
    return f"{{%{before} set _ = 0 {after}%}}"
