from __future__ import annotations

import json
from pathlib import Path

from engine.planner.text import count_tokens
from engine.settings.config import RunConfig
from tests.engine.data.chat_templates import GEMMA, tokenizer_with
from tests.tiny import VOCAB_SIZE, tiny_model


def test_conversations_that_the_template_refuses_are_told_in_the_plan(tmp_path: Path) -> None:
    tokenizer_with(GEMMA).save_pretrained(tmp_path)
    good = [{"role": "user", "content": "Who learns?"}, {"role": "assistant", "content": "The student."}]
    rows = [good] * 30 + [good[1:]] * 10
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    amount = count_tokens(str(tmp_path / "chat.jsonl"), RunConfig(), str(tmp_path), VOCAB_SIZE)
    assert len(amount.lengths) == 30
    assert amount.tokens == sum(amount.lengths)
    assert "the chat template included (it refuses 10 of 40 that were looked at)" in amount.told


def test_plain_text_is_estimated_from_its_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 800)
    amount = count_tokens(str(tmp_path / "a.txt"), RunConfig(), str(tiny_model()), 50_000)
    assert (amount.tokens, amount.lengths) == (1_000, ())
