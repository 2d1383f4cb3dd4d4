"""The Modelfile beside a GGUF file, with which Ollama makes a model of it.

Ollama has templates of its own (Go's), so the chat template is tried out with marks in place of the words, and what it
writes around them becomes Ollama's template. Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.data.chat_template import template_errors
from engine.errors import ModelError
from engine.export.vocabulary import chat_template, end_tokens

Render = Callable[[list[dict[str, str]], bool], str]
_SYSTEM, _USER, _ANSWER = "⟦system⟧", "⟦user⟧", "⟦answer⟧"


def modelfile(folder: Path, weights: str, *, context: int) -> str:
    """The text of a Modelfile.

    Args:
        folder: the model's folder, with its tokenizer.
        weights: name of the GGUF file beside it.
        context: most tokens of a conversation.

    Raises:
        ModelError: the chat template writes no conversation of a question, an answer and a question.
    """
    try:
        turns = Turns.of(_renderer(folder)) if chat_template(folder) else None
    except template_errors() as error:
        raise ModelError(
            f"The chat template in {folder} does not write a conversation of a question, an answer and a question.",
            f"It says: {error}",
            "The GGUF file is whole. llama.cpp reads the chat template itself; for Ollama, write a Modelfile by hand.",
        ) from error
    lines = [f"FROM ./{weights}", f'TEMPLATE """{turns.go_template() if turns else "{{ .Prompt }}"}"""']
    if turns and turns.default_system:
        lines.append(f'SYSTEM """{turns.default_system}"""')
    lines += [f'PARAMETER stop "{token}"' for token in end_tokens(folder)]
    lines.append(f"PARAMETER num_ctx {context}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Turns:
    """Text that a chat template writes around each turn.

    Attributes:
        before_system, after_system: around the system's words; both empty where a template has no system turn.
        system_opens_user: the system's words stand inside the user's turn (Llama 2, Gemma), which they open.
        before_user, before_answer, after_answer: around the user's words and the answer.
        default_system: the system's words that the template itself puts in where none are given.
    """

    before_user: str
    before_answer: str
    after_answer: str
    before_system: str = ""
    after_system: str = ""
    system_opens_user: bool = False
    default_system: str = ""

    @classmethod
    def of(cls, render: Render) -> Turns:
        """Find them by rendering marks in place of words.

        Args:
            render: gives a conversation as text, with the beginning of an answer behind it when asked to.
        """
        user = {"role": "user", "content": _USER}
        answer = {"role": "assistant", "content": _ANSWER}
        opening, _, before_answer = render([user], True).partition(_USER)
        after_answer = render([user, answer], False).rpartition(_ANSWER)[2]
        between = render([user, answer, user], False).partition(_ANSWER)[2].partition(_USER)[0]
        before_user = between.removeprefix(after_answer) if between.startswith(after_answer) else opening
        if not opening.endswith(before_user):
            before_user = opening
        default = opening[: len(opening) - len(before_user)]
        before_system, after_system, opens = _system(render, user, before_user)
        words = ""
        if default and before_system and default.startswith(before_system) and default.endswith(after_system):
            words = default[len(before_system) : len(default) - len(after_system)]
        return cls(before_user, before_answer, after_answer, before_system, after_system, opens, words)

    def go_template(self) -> str:
        """The same in Go's template language, as Ollama fills it in for each round of a conversation."""
        user = "{{ .Prompt }}" + self.before_answer + "{{ .Response }}" + self.after_answer
        if not self.before_system and not self.after_system:
            return self.before_user + user
        system = "{{ if .System }}" + self.before_system + "{{ .System }}" + self.after_system
        if self.system_opens_user:
            return system + "{{ else }}" + self.before_user + "{{ end }}" + user
        return system + "{{ end }}" + self.before_user + user


def _system(render: Render, user: dict[str, str], before_user: str) -> tuple[str, str, bool]:
    try:
        text = render([{"role": "system", "content": _SYSTEM}, user], True)
    except template_errors():  # the template takes no system turn, and says so or looks for what is not there
        return "", "", False
    before, found, rest = text.partition(_SYSTEM)
    if not found:
        return "", "", False
    after = rest.partition(_USER)[0]
    if after.endswith(before_user):
        return before, after[: len(after) - len(before_user)], False
    return before, after, True


def _renderer(folder: Path) -> Render:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def render(turns: list[dict[str, str]], begin_answer: bool) -> str:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begin_answer)
        bos = tokenizer.bos_token or ""
        # Ollama writes the first token itself where the file says so.
        return text.removeprefix(bos) if bos and _adds_bos(tokenizer) else text

    return render


def _adds_bos(tokenizer: object) -> bool:
    ids = tokenizer("a").input_ids  # type: ignore[operator]
    return bool(ids) and ids[0] == tokenizer.bos_token_id  # type: ignore[attr-defined]
