"""Talking to a model in a process of its own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.cli import chat as command
from engine.cli import eval as eval_command
from engine.errors import ModelError
from engine.machine import products
from engine.talk import conversation
from engine.talk.conversation import ChatSession
from engine.talk.speaker import Speaker
from tests.tiny import tiny_model

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return student_in(tmp_path / "run")


def student_in(run: Path) -> Path:
    folder = run / "student"
    shutil.copytree(tiny_model("llama"), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


class Talked(NamedTuple):
    """One conversation, of which the second answer was stopped."""

    folder: Path
    session: ChatSession
    first: str
    begun: str
    after_the_stop: list[dict[str, str]]
    last: str


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> Talked:
    """A conversation in two processes, for all tests that only look at it: each takes seconds to begin."""
    folder = student_in(tmp_path_factory.mktemp("run"))
    with ChatSession(folder, max_tokens=12, temperature=0.0) as talk:
        first = "".join(talk.ask(b"Who \xff learns?".decode("utf-8", "surrogateescape")))
        pieces = talk.ask("And then?")
        begun = next(pieces)
        pieces.close()  # its process is ended
        after_the_stop = list(talk.messages)
        last = "".join(talk.ask("And at last?"))
    return Talked(folder, talk, first, begun, after_the_stop, last)


def test_answers_are_the_models_and_the_conversation_is_remembered(talked: Talked) -> None:
    messages = talked.session.messages
    assert [turn["role"] for turn in messages] == 3 * ["user", "assistant"]
    assert talked.session.tokens_per_second is not None
    assert talked.session.has_template
    model = AutoModelForCausalLM.from_pretrained(talked.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(talked.folder)
    for words, turns in ((talked.first, messages[:1]), (talked.last, messages[:5])):
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True) == words


def test_a_stopped_answer_is_remembered_as_far_as_it_came(talked: Talked) -> None:
    assert [turn["content"] for turn in talked.after_the_stop[2:]] == ["And then?", talked.begun]
    assert talked.session.messages[:4] == talked.after_the_stop


def test_bytes_that_are_no_text_are_replaced(talked: Talked) -> None:
    assert talked.session.messages[0]["content"] == "Who \N{REPLACEMENT CHARACTER} learns?"


@pytest.mark.parametrize(
    ("named", "ends"),
    [(None, {0}), (7, {0, 7}), ([7, 5], {0, 5, 7}), ([0], {0})],
    ids=["none", "one", "two", "its own"],
)
def test_an_answer_ends_at_the_tokenizers_end_and_at_those_that_are_named(
    student: Path, named: object, ends: set[int]
) -> None:
    (student / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    speaker = Speaker(student)
    for token in sorted(ends):
        bias = torch.nn.Linear(speaker.model.config.hidden_size, speaker.model.config.vocab_size)
        torch.nn.init.zeros_(bias.weight)
        bias.bias.data.zero_()[token] = 90.0
        speaker.model.lm_head = bias
        told = list(speaker.answer([{"role": "user", "content": "?"}], max_tokens=5, temperature=0, seed=0))
        assert told[-1]["tokens"] == 1
        assert told[-1]["whole"]
    bias.bias.data.zero_()[9] = 90.0
    told = list(speaker.answer([{"role": "user", "content": "?"}], max_tokens=5, temperature=0, seed=0))
    assert told[-1]["tokens"] == 5
    assert not told[-1]["whole"]


def test_a_model_whose_files_cannot_be_mapped_is_read(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: object, **named: object) -> None:
        raise OSError("No such device (os error 19)")

    spoken = Speaker(student).model
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refused)
    read = Speaker(student).model
    assert read.dtype == spoken.dtype
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(read.parameters(), spoken.parameters(), strict=True))


def test_a_question_in_a_format_without_kernels_is_read_in_float32(student: Path, monkeypatch: Any) -> None:
    rows: list[int] = []
    own = products._forward_in_float32

    def counted(layer: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:
        rows.append(input.numel() // input.shape[-1])
        return own(layer, input)

    question = [{"role": "user", "content": "Who learns, and from whom?"}]
    expected = list(Speaker(student).answer(question, max_tokens=5, temperature=0, seed=0))
    monkeypatch.setattr(products, "_lacks_kernels", lambda weight: True)
    monkeypatch.setattr(products, "_forward_in_float32", counted)
    told = list(Speaker(student).answer(question, max_tokens=5, temperature=0, seed=0))
    assert [piece.get("text") for piece in told] == [piece.get("text") for piece in expected]
    assert max(rows) > 16
    assert min(rows) == 1


def test_an_empty_question_begins_a_text(student: Path) -> None:
    (student / "chat_template.jinja").unlink()
    speaker = Speaker(student)
    told = list(speaker.answer([{"role": "user", "content": ""}], max_tokens=5, temperature=0, seed=0))
    begun = torch.tensor([[speaker.tokenizer.eos_token_id]])
    made = speaker.model.generate(begun, attention_mask=torch.ones_like(begun), max_new_tokens=5, do_sample=False)
    words = speaker.tokenizer.decode(made[0, 1:], skip_special_tokens=True)
    assert "".join(piece.get("text", "") for piece in told) == words
    assert told[-1]["tokens"] == made.shape[1] - 1


def test_a_question_that_is_not_answered_was_not_asked(student: Path) -> None:
    (student / "chat_template.jinja").write_text("{{ raise_exception('No') }}")
    with ChatSession(student, max_tokens=6) as talk:
        with pytest.raises(ModelError, match="did not answer"):  # the model fails while it answers
            "".join(talk.ask("Who?"))
        assert talk.messages == []
        (student / "config.json").write_text("{")
        with pytest.raises(ModelError, match="did not answer"):  # it cannot be loaded
            "".join(talk.ask("Who?"))
        assert talk.messages == []


def test_a_process_that_complains_at_length_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "speaker.py"
    program.write_text(
        "import json, sys\n"
        "def complain(): sys.stderr.write('A warning of some words.\\n' * 40_000)\n"
        "complain()\n"
        "print(json.dumps({'ready': True, 'has_template': True}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    complain()\n"
        "    if 'end' in line: sys.exit('It ends\\n here.')\n"
        "    print(json.dumps({'text': 'Yes.'}))\n"
        "    end = {'tokens': 1, 'seconds': 1, 'whole': True, 'left_out': 0, 'shortened': False}\n"
        "    print(json.dumps(end), flush=True)\n"
    )
    monkeypatch.setattr(conversation.safe_child, "command", lambda *_: [sys.executable, str(program)])
    with ChatSession(tmp_path) as talk:
        assert "".join(talk.ask("Well?")) == "Yes."
        with pytest.raises(ModelError) as caught:
            "".join(talk.ask("And at the end?"))
        assert caught.value.why == "here."
        assert "".join(talk.ask("Again?")) == "Yes."


@pytest.mark.slow
def test_what_the_code_of_a_model_prints_is_no_answer(student: Path, capfd: Any) -> None:
    config = json.loads((student / "config.json").read_text())
    config |= {"model_type": "loud", "architectures": ["LoudForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "loud.LoudConfig", "AutoModelForCausalLM": "loud.LoudForCausalLM"}
    (student / "config.json").write_text(json.dumps(config))
    (student / "loud.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "print('A greeting')\n"
        "class LoudConfig(LlamaConfig):\n    model_type = 'loud'\n"
        "class LoudForCausalLM(LlamaForCausalLM):\n"
        "    config_class = LoudConfig\n"
        "    def forward(self, *args, **kwargs):\n"
        "        print('Hear me! ' * 5_000)\n"
        "        return super().forward(*args, **kwargs)\n"
    )
    words = [str(student), "--trust_remote_code"]
    assert command.main([*words, "--prompt", "Who learns?", "--max_tokens", "6"]) == 0
    assert "Hear me!" not in capfd.readouterr().out
    text = student.parent / "text.txt"
    text.write_text("A small model learns from what a large one would have said. " * 40)
    assert eval_command.main([*words, "--data", str(text), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["documents"] >= 1


@pytest.mark.slow
def test_command_answers_once_on_standard_output(student: Path, capfd: Any) -> None:
    words = [str(student.parent), "--prompt", "Who learns?", "--max_tokens", "6", "--temperature", "0"]
    assert command.main(words) == 0
    once, told = capfd.readouterr()
    assert "(Cut off after 6 tokens: see --max_tokens.)" in told
    assert command.main(words) == 0
    assert capfd.readouterr().out == once
    assert once.endswith("\n")


@pytest.mark.slow
def test_teacher_answers_below_the_student(student: Path, capfd: Any) -> None:
    settings = {"settings": {"teacher": str(tiny_model("llama", seed=3))}}
    (student.parent / "run.json").write_text(json.dumps(settings))
    words = [str(student.parent), "--beside", "teacher", "--prompt", "Who?", "--max_tokens", "4"]
    assert command.main(words) == 0
    lines = capfd.readouterr().out
    assert lines.index("student: ") < lines.index("teacher: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_tokens", "0"], "expected a whole number from 1 up"),
        (["--temperature", "-1"], "expected a number from 0 to 10"),
        (["--beside", "teacher"], "does not say which teacher"),
    ],
)
def test_bad_requests_are_told_before_a_model_is_loaded(
    student: Path, words: list[str], said: str, capsys: Any
) -> None:
    assert command.main([str(student), *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


WORDS = "Layers, tokens, heads and tails: a record holds the likely words exactly. "


@pytest.mark.parametrize("max_tokens", [8, 64, 10_000])
@pytest.mark.parametrize("turns", [1, 3, 9, 31])
def test_a_long_conversation_loses_its_oldest_turns_and_never_a_part_of_one(
    student: Path, turns: int, max_tokens: int
) -> None:
    speaker = Speaker(student)
    roles = ["user", "assistant"]
    messages = [{"role": roles[place % 2], "content": f"{place} {WORDS}"} for place in range(turns)]
    told = list(speaker.answer(messages, max_tokens=max_tokens, temperature=0, seed=0))[-1]
    kept = messages[told["left_out"] :]
    assert kept[0]["role"] == "user"
    assert not told["shortened"]
    length = len(speaker.tokenizer(speaker.prompt(kept), add_special_tokens=False).input_ids)
    assert length + told["tokens"] <= 128  # the model's positions
    assert told["left_out"] == 0 or length + len(speaker.tokenizer(WORDS * 2).input_ids) > 128 - max_tokens
    assert told["whole"] or told["tokens"] == min(max_tokens, 128 - length)


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_question_that_is_longer_than_the_context_is_read_from_behind(student: Path, template: str | None) -> None:
    if template is None:
        (student / "chat_template.jinja").unlink()
    told = list(Speaker(student).answer([{"role": "user", "content": WORDS * 40}], max_tokens=8, temperature=0, seed=0))
    assert told[-1]["shortened"]
    assert told[-1]["tokens"] or told[-1]["whole"]


def test_a_model_that_fails_while_it_answers_says_so(student: Path) -> None:
    speaker = Speaker(student)
    speaker.model.lm_head = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError):
        list(speaker.answer([{"role": "user", "content": "?"}], max_tokens=5, temperature=0, seed=0))
