"""Ollama's template writes around the words of a conversation what the chat template writes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest

from engine.errors import ModelError
from engine.export.ollama import Turns, modelfile
from tests.tiny import tiny_model

CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}[INST] {{ (s if loop.first else '') + m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def renderer(template: str) -> Any:
    def fail(words: str) -> None:
        raise jinja2.TemplateError(words)

    environment = jinja2.Environment()
    environment.globals["raise_exception"] = fail

    def render(turns: list[dict[str, str]], begin: bool) -> str:
        return environment.from_string(template).render(messages=turns, add_generation_prompt=begin)

    return render


def filled(template: str, rounds: list[dict[str, str]]) -> str:
    """Render a template as Ollama does: once for each round, the last one cut where its answer begins."""
    text = ""
    for number, words in enumerate(rounds):
        part = re.sub(
            r"{{ if .System }}(.*?)(?:{{ else }}(.*?))?{{ end }}",
            lambda found, words=words: (found[1] if words.get("system") else found[2]) or "",
            template,
            flags=re.DOTALL,
        )
        part = part.replace("{{ .System }}", words.get("system", "")).replace("{{ .Prompt }}", words["user"])
        before, _, after = part.partition("{{ .Response }}")
        text += before + (words["answer"] + after if number < len(rounds) - 1 else "")
    return text


@pytest.mark.parametrize("template", [CHATML, PLAIN_CHATML, LLAMA2, GEMMA])
@pytest.mark.parametrize("system", ["", "You know stones."])
def test_conversations_read_alike(template: str, system: str) -> None:
    render = renderer(template)
    turns = Turns.of(render)
    if system and template == GEMMA:
        assert "System" not in turns.go_template()
        return
    said = system or turns.default_system
    rounds = [{"user": "One?", "answer": "1", "system": said}, {"user": "Two?"}]
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]
    messages += [{"role": "user", "content": "Two?"}]
    # Llama 2 puts a space before a past answer, and none where an answer begins: Ollama has one template for both.
    assert filled(turns.go_template(), rounds) == render(messages, True).replace("[/INST] 1", "[/INST]1")


def test_default_system_words_are_told() -> None:
    assert Turns.of(renderer(CHATML)).default_system == "Be kind."
    assert Turns.of(renderer(PLAIN_CHATML)).default_system == ""


@pytest.mark.parametrize(
    "refusal",
    [
        "{{ raise_exception('No system turns') }}",
        "{{ messages[0].tools.names }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ {}['system'].words }}",
    ],
)
def test_a_template_that_refuses_system_turns_in_its_own_way_has_none(refusal: str) -> None:
    turns = Turns.of(renderer("{% if messages[0].role == 'system' %}" + refusal + "{% endif %}" + PLAIN_CHATML))
    assert (turns.before_system, turns.after_system) == ("", "")
    assert turns.before_user == "<|im_start|>user\n"


@pytest.mark.parametrize(
    "error", [RuntimeError("of the program"), KeyboardInterrupt(), MemoryError(), OSError(28, "full")]
)
def test_what_is_no_refusal_of_a_template_is_not_taken_for_one(error: BaseException) -> None:
    plain = renderer(PLAIN_CHATML)

    def render(turns: list[dict[str, str]], begin: bool) -> str:
        if turns[0]["role"] == "system":
            raise error
        return plain(turns, begin)  # type: ignore[no-any-return]

    with pytest.raises(type(error)):
        Turns.of(render)


def test_a_template_that_refuses_every_conversation_is_told(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('Only tools may speak') }}")
    with pytest.raises(ModelError, match="does not write a conversation") as caught:
        modelfile(folder, "model.gguf", context=64)
    assert "Only tools may speak" in caught.value.paragraph()
