"""A run on conversations from end to end, with a tokenizer that has no chat template of its own."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.program import QUICK, run
from tests.engine.data.small_data import write_chats
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow


def test_a_student_of_a_model_without_a_template_gets_the_one_it_was_taught_in(tmp_path):
    words = [*QUICK[:-1], "64"]
    done = run(
        *["--teacher", tiny_model(), "--student", tiny_model(num_layers=2, seed=1), *words],
        *["--data", write_chats(tmp_path / "chat.jsonl"), "--steps", 2, "--output_dir", tmp_path / "run"],
    )
    assert done.returncode == 0, done.stderr
    assert "no chat template" in done.stdout + done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert all(sample["prompt"].startswith("User: question") for sample in report["samples"])
    assert all(sample["prompt"].endswith("\n\nAssistant:") for sample in report["samples"])

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "student")
    question = [{"role": "user", "content": "question 3"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert prompt == "User: question 3\n\nAssistant:"
