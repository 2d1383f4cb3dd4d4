"""The Modelfile beside a GGUF file, with which Ollama makes a model of it.

Ollama has templates of its own (Go's text/template), so the chat template is rendered with marks in place of the words,
and the text around the marks becomes Ollama's template. Other conversations are then rendered by both and compared.
Tool calls and reasoning are not translated. Formats: https://docs.ollama.com/modelfile, https://docs.ollama.com/template
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data.chat_template import template_errors
from engine.errors import ModelError
from engine.export.vocabulary import chat_template, end_tokens

Messages = Sequence[Mapping[str, str]]
Render = Callable[[list[dict[str, str]], bool], str]
_SYSTEM, _USERS, _ANSWERS = "⟦system⟧", ("⟦one⟧", "⟦two⟧", "⟦three⟧"), ("⟦1⟧", "⟦2⟧")
_QUOTES = '"""'


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile.

    Attributes:
        text: of the file.
        notes: what Ollama's template does not write as the model's chat template does, as sentences.
    """

    text: str
    notes: tuple[str, ...]


def modelfile(folder: Path, weights: str, *, context: int) -> Modelfile:
    """Translate a model's chat template and stop tokens.

    Args:
        folder: the model's folder, with its tokenizer.
        weights: name of the GGUF file beside it.
        context: most tokens of a conversation.

    Raises:
        ModelError: the chat template writes no conversation of a question, an answer and a question.
    """
    source = chat_template(folder)
    stops = end_tokens(folder)
    notes: tuple[str, ...] = ()
    if source:
        try:
            render = _renderer(folder)
            turns = Turns.of(render)
            notes = turns.differences(render)
        except template_errors() as error:
            raise ModelError(
                f"The chat template in {folder} does not write a conversation of a question, an answer and a question.",
                f"It says: {error}",
                "The GGUF file is whole. llama.cpp reads the chat template itself; for Ollama, write a Modelfile by "
                "hand.",
            ) from error
        if "tools" in source:
            notes += ("Ollama's template has no tool calls. The chat template in the GGUF file has them.",)
        lines = [f"FROM ./{weights}", f"TEMPLATE {_quoted(turns.go_template())}"]
        if turns.default_system and _is_kept(turns.default_system):
            lines.append(f"SYSTEM {_quoted(turns.default_system)}")
        end = turns.end_of_answer
        if end and _is_kept(end) and not any(stop in end for stop in stops):
            stops = [*stops, end]
    else:
        lines = [f"FROM ./{weights}", f"TEMPLATE {_quoted('{{ .Prompt }}')}"]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines.append(f"PARAMETER num_ctx {context}")
    return Modelfile("\n".join(lines) + "\n", notes)


@dataclass(frozen=True)
class Turns:
    """Text that a chat template writes around the words of a conversation.

    Attributes:
        opening: before the first question of a conversation without system words.
        system: before and after the system words, in front of the first question.
        between: before a later question; it begins with the end of the answer before.
        before_answer: between a question and its answer, once the answer is given.
        invitation: after the last question, where the answer begins.
        end_of_answer: after an answer that ends the conversation, without white space around it.
        later_system: before and after the system words in front of a later question. Given where a template writes the
            system words into the last question (Mistral's), else None.
    """

    opening: str
    system: tuple[str, str]
    between: str
    before_answer: str
    invitation: str
    end_of_answer: str = ""
    later_system: tuple[str, str] | None = None

    @classmethod
    def of(cls, render: Render) -> Turns:
        """Find them by rendering marks in place of words.

        Args:
            render: returns a conversation as text, with the beginning of an answer after it when asked to.

        Raises:
            ValueError: a question or an answer is not in the text.
        """
        opening, invitation = _cut(render(_conversation(1), True), _USERS[0])
        _, before_answer, between, _ = _cut(render(_conversation(2), True), _USERS[0], _ANSWERS[0], _USERS[1])
        end = render(_conversation(2)[:2], False).rpartition(_ANSWERS[0])[2].strip()
        # A template without system words gets them as a run's text does: in front of the first question.
        system, later = (opening, "\n\n"), None
        try:
            one, two = (render(_conversation(count, _SYSTEM), True) for count in (1, 2))
            if _SYSTEM in one and _SYSTEM in two:
                before, after, _ = _cut(one, _SYSTEM, _USERS[0])
                system = before, after
                if two.index(_SYSTEM) > two.index(_ANSWERS[0]):
                    _, _, *later_system, _ = _cut(two, _USERS[0], _ANSWERS[0], _SYSTEM, _USERS[1])
                    later = later_system[0], later_system[1]
        except template_errors():  # the template refuses a system turn, or looks for what is not there
            system, later = (opening, "\n\n"), None
        return cls(opening, system, between, before_answer, invitation, end, later)

    @property
    def default_system(self) -> str:
        """The system words that the template itself writes where none are given."""
        before, after = self.system
        if len(self.opening) > len(before) + len(after) and self.opening.startswith(before):
            return self.opening[len(before) : -len(after) or None] if self.opening.endswith(after) else ""
        return ""

    def go_template(self) -> str:
        """The same in Go's template language, as Ollama fills it in for a whole conversation."""
        system = "{{ $.System }}"
        first = f"{_literal(self.system[0])}{system}{_literal(self.system[1])}"
        asks = "$.System"
        later = _literal(self.between)
        if self.later_system is not None:
            asks = "and $.System $last"
            before, after = map(_literal, self.later_system)
            later = f"{{{{ if {asks} }}}}{before}{system}{after}{{{{ else }}}}{later}{{{{ end }}}}"
        opening, invitation, answer = map(_literal, (self.opening, self.invitation, self.before_answer))
        return (
            "{{ $begun := false }}{{ range $i, $turn := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            '{{ if eq $turn.Role "user" }}{{ if $begun }}'
            + later
            + f"{{{{ else if {asks} }}}}{first}{{{{ else }}}}{opening}{{{{ end }}}}"
            + "{{ $turn.Content }}{{ if $last }}"
            + invitation
            + '{{ end }}{{ $begun = true }}{{ else if eq $turn.Role "assistant" }}'
            + answer
            + "{{ $turn.Content }}{{ end }}{{ end }}"
        )

    def write(self, messages: Messages) -> str:
        """A conversation as the template writes it; the last turn is a question.

        Args:
            messages: turns with ``role`` (system, user or assistant) and ``content``.
        """
        system = "\n\n".join(turn["content"] for turn in messages if turn["role"] == "system")
        text = ""
        for place, turn in enumerate(messages):
            last = place == len(messages) - 1
            if turn["role"] == "assistant":
                text += self.before_answer + turn["content"]
            elif turn["role"] == "user":
                takes = bool(system) and (last or self.later_system is None)
                if not text:
                    text += f"{self.system[0]}{system}{self.system[1]}" if takes else self.opening
                elif takes and self.later_system is not None:
                    text += f"{self.later_system[0]}{system}{self.later_system[1]}"
                else:
                    text += self.between
                text += turn["content"] + (self.invitation if last else "")
        return text

    def differences(self, render: Render) -> tuple[str, ...]:
        """Conversations that this writes in another way than the chat template, as sentences.

        Args:
            render: the chat template.
        """
        found = []
        for system in ("", _SYSTEM):
            for rounds in range(1, len(_USERS) + 1):
                messages = _conversation(rounds, system)
                try:
                    expected = render(messages, True)
                except template_errors():
                    continue  # a refused system turn
                if system in expected and self.write(messages) != expected:
                    asked = "1 question" if rounds == 1 else f"{rounds} questions"
                    found.append(f"{asked} and a system prompt" if system else asked)
        if not found:
            return ()
        return (f"Ollama's template differs from the model's chat template in conversations with {'; '.join(found)}.",)


def _conversation(rounds: int, system: str = "") -> list[dict[str, str]]:
    """Questions, with an answer after each but the last."""
    turns = [{"role": "system", "content": system}] if system else []
    for number in range(rounds):
        turns.append({"role": "user", "content": _USERS[number]})
        if number < rounds - 1:
            turns.append({"role": "assistant", "content": _ANSWERS[number]})
    return turns


def _cut(text: str, *marks: str) -> list[str]:
    """The texts before, between and after marks that follow each other."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ValueError("It leaves out a question or an answer.")
        parts.append(before)
    return [*parts, text]


def _literal(text: str) -> str:
    """A text in a Go template: as it is, but for what Go or the Modelfile's reader would take for something else."""
    parts = text.split("{{")
    for place, part in enumerate(parts):
        # Ollama drops characters that are not printable from a Modelfile.
        parts[place] = "".join(
            each if each.isprintable() or each in "\n\t" else f'{{{{ "\\U{ord(each):08x}" }}}}' for each in part
        ).replace(_QUOTES, '{{ "\\"\\"\\"" }}')
    return '{{ "{{" }}'.join(parts)


def _is_kept(text: str) -> bool:
    """Return whether a Modelfile can hold a text as it is."""
    return _QUOTES not in text and all(each.isprintable() or each in "\n\t" for each in text)


def _quoted(text: str) -> str:
    return f"{_QUOTES}{text}{_QUOTES}"


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
