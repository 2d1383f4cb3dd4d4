"""Ollama's template writes around the words of a conversation what the chat template writes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers import AutoTokenizer

from engine.data.chat_template import PLAIN_TEMPLATE
from engine.errors import ModelError
from engine.export.ollama import Turns, modelfile
from tests.engine.data.chat_templates import FAMILIES
from tests.engine.export.go_template import fields, fill, ollama_fill
from tests.tiny import tiny_model

PLAIN_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + PLAIN_CHATML
)
# A system turn is written even where there are no words for it, with a date (Llama 3.1's).
DATED_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "<|head|>system<|over|>\n\nToday: 26 Jul 2024\n\n{{ s }}<|end|>"
    "{% for m in rest %}<|head|>{{ m.role }}<|over|>\n\n{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|over|>\n\n{% endif %}"
)
# The system words are at the beginning of the last question (Mistral's since Nemo).
SYSTEM_IN_THE_LAST_QUESTION = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
    "[INST]{{ s + '\n\n' if loop.last and s is defined else '' }}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
# An answer begins with an empty thought, which is left out of past answers (Qwen3's).
EMPTY_THOUGHT = PLAIN_CHATML.replace("assistant\n{%", "assistant\n<think>\n\n</think>\n\n{%")
BRACES = '{% for m in messages %}{{ \'{{\' }}{{ m.role }}}} {{ m.content }} """\n\u00a0{% endfor %}A: '
TEMPLATES = {
    "chatml": PLAIN_CHATML,
    "default system": DEFAULT_SYSTEM,
    "dated system": DATED_SYSTEM,
    "system in the last question": SYSTEM_IN_THE_LAST_QUESTION,
    "empty thought": EMPTY_THOUGHT,
    "braces, quotes and a no-break space": BRACES,
    "none of its own": PLAIN_TEMPLATE,
    **{name: family.template for name, family in FAMILIES.items()},
}
CONVERSATIONS = {
    "a question": ["user"],
    "two questions": ["user", "assistant", "user"],
    "three questions": ["user", "assistant", "user", "assistant", "user"],
    "system, a question": ["system", "user"],
    "system, two questions": ["system", "user", "assistant", "user"],
    "system, three questions": ["system", "user", "assistant", "user", "assistant", "user"],
}


def folder_with(template: str, place: Path) -> Path:
    folder: Path = shutil.copytree(tiny_model("llama"), place / "model")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def conversation(roles: list[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": f"Words {place} of {{{{ .System }}}}."} for place, role in enumerate(roles)]


def expected(folder: Path, messages: list[dict[str, str]]) -> str:
    """The chat template's text; where it takes no system turn, the data's way: before the first question."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def render(turns: list[dict[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    if messages[0]["role"] != "system":
        return render(messages)
    try:
        text = render(messages)
        if messages[0]["content"] in text:
            return text
    except jinja2.TemplateError:
        pass
    system, first, *rest = messages
    return render([{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest])


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_the_chat_templates(name: str, tmp_path: Path) -> None:
    folder = folder_with(TEMPLATES[name], tmp_path)
    made = modelfile(folder, "model.gguf", context=64)
    template = dict(fields(made.text))["template"]
    for roles in CONVERSATIONS.values():
        messages = conversation(roles)
        assert ollama_fill(template, messages) == expected(folder, messages), roles
    assert not [note for note in made.notes if "differs" in note]


GO = """package main
import ("encoding/json"; "os"; "text/template")
type Turn struct { Role, Content string }
type Job struct { Template, System string; Messages []Turn }
func main() {
    var jobs []Job
    var out []string
    if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil { panic(err) }
    for _, job := range jobs {
        made := template.Must(template.New("").Option("missingkey=zero").Parse(job.Template))
        var b buffer
        turns := []*Turn{}
        for i := range job.Messages { turns = append(turns, &job.Messages[i]) }
        values := map[string]any{"System": job.System, "Messages": turns, "Response": ""}
        if err := made.Execute(&b, values); err != nil { panic(err) }
        out = append(out, string(b))
    }
    json.NewEncoder(os.Stdout).Encode(out)
}
type buffer []byte
func (b *buffer) Write(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="needs a Go compiler")
def test_go_fills_templates_in_as_the_reader_of_these_tests(tmp_path: Path) -> None:
    jobs, told = [], []
    for number, template in enumerate(TEMPLATES.values()):
        folder = folder_with(template, tmp_path / str(number))
        written = dict(fields(modelfile(folder, "model.gguf", context=64).text))["template"]
        for roles in CONVERSATIONS.values():
            messages = conversation(roles)
            system = messages[0]["content"] if messages[0]["role"] == "system" else ""
            jobs.append({"Template": written, "System": system, "Messages": messages})
            told.append(ollama_fill(written, messages))
    (tmp_path / "main.go").write_text(GO)
    done = subprocess.run(
        ["go", "run", str(tmp_path / "main.go")], input=json.dumps(jobs), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == told


def test_default_system_words_are_told(tmp_path: Path) -> None:
    assert dict(fields(modelfile(folder_with(DEFAULT_SYSTEM, tmp_path / "a"), "w", context=64).text))["system"] == (
        "Be kind."
    )
    for number, template in enumerate((PLAIN_CHATML, DATED_SYSTEM)):
        made = modelfile(folder_with(template, tmp_path / str(number)), "w", context=64)
        assert "system" not in dict(fields(made.text))


def test_a_conversation_that_is_written_otherwise_is_told(tmp_path: Path) -> None:
    counts = "{{ messages | length }} " + PLAIN_CHATML  # the beginning depends on what comes later
    notes = modelfile(folder_with(counts, tmp_path), "w", context=64).notes
    assert len(notes) == 1
    assert "differs from the model's chat template in conversations with" in notes[0]
    assert "2 questions" in notes[0]


def test_tool_calls_are_not_promised(tmp_path: Path) -> None:
    assert modelfile(folder_with(PLAIN_CHATML, tmp_path / "a"), "w", context=64).notes == ()
    notes = modelfile(folder_with("{% if tools %}Tools{% endif %}" + PLAIN_CHATML, tmp_path / "b"), "w", context=64)
    assert any("no tool calls" in note for note in notes.notes)


@pytest.mark.parametrize(
    ("end", "stops"),
    [
        ("<|im_end|>", ["<|endoftext|>", "<|im_end|>"]),  # a base model's tokenizer with a chat template
        ("<|endoftext|>", ["<|endoftext|>"]),
        ("", ["<|endoftext|>"]),
    ],
)
def test_an_answer_stops_where_the_chat_template_ends_it(end: str, stops: list[str], tmp_path: Path) -> None:
    made = modelfile(folder_with(PLAIN_CHATML.replace("<|im_end|>", end), tmp_path), "w", context=64)
    assert [value for name, value in fields(made.text) if name == "stop"] == stops


@pytest.mark.parametrize(
    "refusal",
    [
        "{{ raise_exception('No system turns') }}",
        "{{ messages[0].tools.names }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ {}['system'].words }}",
    ],
)
def test_a_template_that_refuses_system_turns_in_its_own_way_gets_them_in_the_first_question(
    refusal: str, tmp_path: Path
) -> None:
    folder = folder_with("{% if messages[0].role == 'system' %}" + refusal + "{% endif %}" + PLAIN_CHATML, tmp_path)
    template = dict(fields(modelfile(folder, "model.gguf", context=64).text))["template"]
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}]
    assert ollama_fill(template, messages) == "<|im_start|>user\nBe kind.\n\nWho?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "error", [RuntimeError("of the program"), KeyboardInterrupt(), MemoryError(), OSError(28, "full")]
)
def test_what_is_no_refusal_of_a_template_is_not_taken_for_one(error: BaseException) -> None:
    def render(turns: list[dict[str, str]], begin: bool) -> str:
        if turns[0]["role"] == "system":
            raise error
        said = jinja2.Environment().from_string(PLAIN_CHATML).render(messages=turns, add_generation_prompt=begin)
        return str(said)

    with pytest.raises(type(error)):
        Turns.of(render)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('Only tools may speak') }}", "Only tools may speak"),
        ("{{ messages[0].content }}", "leaves out a question or an answer"),
    ],
)
def test_a_template_that_takes_no_conversation_is_told(template: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not write a conversation") as caught:
        modelfile(folder_with(template, tmp_path), "model.gguf", context=64)
    assert said in caught.value.paragraph()


def test_the_reader_of_these_tests_reads_gos_words() -> None:
    assert fill(
        '{{ if and $.a (eq (len $.b) 2) }}yes{{ else if $.a }}"{{ "\\"" }}{{ else }}no{{ end }}', values(1)
    ) == ('""')
    assert fill("{{ range $i, $x := .b }}{{ $i }}{{ $x }}{{ end }}{{ .a }}", values(2)) == "0x1xTrue"


def values(count: int) -> dict[str, Any]:
    return {"a": True, "b": ["x"] * count}
