"""A student that learned some conversations answers in its template, and stops by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.talk.conversation import ChatSession
from tests.end_to_end.program import QUICK, run
from tests.engine.data.chat_templates import CHATML, tokenizer_with
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow

QUESTIONS = ("who are you", "what is a model", "where is the text", "is it small")
ANSWERS = ("a student", "a small teacher of words", "here", "yes it is")


def _base_model(folder: Path, template: str | None) -> Path:
    """A model that ends texts with one token and turns with another, as many do that were trained on texts alone."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_with(template)
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama", num_layers=2, hidden_size=64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    return folder


def _learned(tmp_path: Path, template: str | None, kd_weight: float) -> Path:
    """The student of a run on 32 conversations."""
    model = _base_model(tmp_path / "model", template)
    with (tmp_path / "chat.jsonl").open("w") as file:
        for number in range(32):
            question, answer = f"{QUESTIONS[number % 4]} {number}", ANSWERS[number % 4]
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    done = run(
        *["--teacher", model, "--student", model, *QUICK[:-1], "64", "--data", tmp_path / "chat.jsonl"],
        *["--steps", 80, "--learning_rate", "1e-2", "--kd_weight", kd_weight, "--output_dir", tmp_path / "run"],
        # All in one micro-batch: a micro-batch of one row each takes five times as long.
        *["--student_batch", 32, "--gradient_accumulation", 1, "--teacher_batch", 8],
    )
    assert done.returncode == 0, done.stderr
    return tmp_path / "run" / "student"


@pytest.mark.parametrize("template", [CHATML, None], ids=["chatml", "plain"])
def test_a_student_that_learned_some_conversations_stops_by_itself(tmp_path: Path, template: str | None) -> None:
    student = _learned(tmp_path, template, 0)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [sample["after"] for sample in report["samples"] if sample["after"].endswith("…")] == []
    assert {sample["after"].strip() for sample in report["samples"]} <= set(ANSWERS)
    with ChatSession(student, max_tokens=24, temperature=0) as talk:
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
            assert "".join(talk.ask(f"{question} 7")).strip() == answer
            assert talk.is_whole
            talk.messages.clear()


def test_the_end_of_an_answer_is_learned_from_a_teacher_that_would_go_on(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    student = _learned(tmp_path, CHATML, 1)
    tokenizer = AutoTokenizer.from_pretrained(student)
    chances = {}
    for name, folder in (("teacher", tmp_path / "model"), ("student", student)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        turns = [{"role": "user", "content": f"{QUESTIONS[0]} 4"}, {"role": "assistant", "content": ANSWERS[0]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).partition("<|im_end|>\n<|im_start|>assistant")
        ids = tokenizer("".join(text[:2]) + text[2].partition("<|im_end|>")[0], return_tensors="pt").input_ids
        with torch.no_grad():
            probs = model(ids).logits[0, -1].softmax(0)
        chances[name] = float(probs[tokenizer.convert_tokens_to_ids("<|im_end|>")])
    assert chances["teacher"] < 0.05
    assert chances["student"] > 0.4


def test_a_student_with_another_template_leaves_with_the_one_it_was_trained_in(tmp_path: Path) -> None:
    other = "{% for m in messages %}{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    teacher, student = _base_model(tmp_path / "teacher", CHATML), _base_model(tmp_path / "student", other)
    settings = json.loads((student / "tokenizer_config.json").read_text())
    (student / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": other}))
    rows = [{"prompt": f"{QUESTIONS[number % 4]} {number}", "completion": ANSWERS[number % 4]} for number in range(32)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(
        *["--teacher", teacher, "--student", student, *QUICK[:-1], "64", "--data", tmp_path / "chat.jsonl"],
        *["--steps", 2, "--output_dir", tmp_path / "run"],
    )
    assert done.returncode == 0, done.stderr
    assert "has another chat template than the teacher" in done.stdout + done.stderr
    left = tmp_path / "run" / "student"
    assert (left / "chat_template.jinja").read_text() == CHATML
    assert json.loads((left / "tokenizer_config.json").read_text())["chat_template"] == CHATML
