"""``tiny-distill-eval`` on a text, on a run, and on what cannot be judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.cli import eval as command
from engine.cli import eval_table
from engine.student.exam import GUESSING
from tests.end_to_end.program import QUICK, run, write_texts
from tests.engine.student.test_exam import TEXTS
from tests.tiny import VOCAB_SIZE, tiny_model


def test_any_model_on_any_text(tmp_path: Path, capsys: Any) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    model = str(tiny_model("llama", num_layers=2))
    assert command.main([model, "--data", str(tmp_path), "--questions", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["documents"] == 6
    mean, low, high = found["figures"]["loss"]
    assert low <= mean <= high
    assert set(found["tasks"]) == {"next-word", "cloze", "continuation"}
    assert found["verdict"].startswith("The loss on this text is")
    assert command.main([model, "--data", str(tmp_path), "--tasks", "cloze", "--questions", "4"]) == 0
    told = capsys.readouterr().out
    assert "bits a byte" in told
    assert "cloze" in told
    assert "continuation" not in told


def test_long_documents_are_cut_so_that_several_are_scored(tmp_path: Path, capsys: Any) -> None:
    """A file of a megabyte is one document for each 131,072 characters: all of the first was scored, for minutes."""
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(" ".join([text] * 200))
    model = str(tiny_model("llama", num_layers=2))
    assert command.main([model, "--data", str(tmp_path), "--tasks", "--max_tokens", "2000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["documents"] >= 4, "512 tokens of each at most"
    assert found["tokens"] == 2000
    assert 0 < found["figures"]["bits_per_byte"][0] < 50, "the bytes are those of what was scored"


def test_what_cannot_be_judged_is_said(tmp_path: Path, capsys: Any) -> None:
    model = str(tiny_model("llama", num_layers=2))
    assert command.main([model]) == 2
    assert "has no hold-out of its own" in capsys.readouterr().err
    assert command.main([model, "--data", str(tmp_path), "--tasks", "no_such_task"]) == 2
    assert "no_such_task: " in capsys.readouterr().err
    assert command.main([str(tmp_path), "--data", str(tmp_path)]) == 2
    assert "holds neither a run nor a model" in capsys.readouterr().err


def test_conversations_are_written_in_the_template_and_their_answers_are_scored(tmp_path: Path, capsys: Any) -> None:
    """Turns were put together as one text: the loss was that of questions and answers without a template."""
    model = tmp_path / "m"
    shutil.copytree(tiny_model("llama", num_layers=2), model)
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    chats = [(f"Where is lamp {number}?", f"Under window {number * 7}.") for number in range(8)]
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in chats
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command.main([str(model), "--data", str(tmp_path / "chats.jsonl"), "--json", "--tasks"]) == 0
    found = json.loads(capsys.readouterr().out)

    net, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    losses = []
    for asked, said in chats:
        before, answer = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (f"<user>{asked}<|endoftext|><assistant>", f"{said}<|endoftext|>")
        )
        logits = net(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1, :VOCAB_SIZE]
        losses += (-logits.log_softmax(1)[range(len(answer)), answer]).tolist()
    assert found["documents"] == 8
    assert found["tokens"] == len(losses)
    assert found["figures"]["loss"][0] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


SURE = [2.0, 1.9, 2.1]


@pytest.mark.parametrize(
    ("beyond", "before", "told"),
    [
        ([0.0, -0.1, 0.1], 3.0, "better than before (3.000)"),
        ([0.0, -0.1, 0.1], 3.0, "as good as the teacher within 0.100"),
        ([0.3, 0.2, 0.4], 2.05, "not shown to be better than before"),
        ([0.3, 0.2, 0.4], 2.05, "0.300 (0.200 to 0.400) behind the teacher"),
        ([0.1, -0.4, 0.6], 3.0, "not shown to be better or worse than the teacher (-0.400 to +0.600)"),
        ([-0.3, -0.4, -0.2], 1.0, "worse than before"),
        ([-0.3, -0.4, -0.2], None, "better than the teacher by 0.300"),
        (None, None, "The loss on this text is 2.000 (95% 1.900 to 2.100)"),
    ],
)
def test_the_verdict_is_what_the_intervals_show(beyond: Any, before: float | None, told: str) -> None:
    figures = {"loss": SURE} if beyond is None else {"loss": SURE, "loss_beyond_teacher": beyond}
    found = eval_table.Findings(
        "a", "b", documents=9, figures=figures, before={} if before is None else {"loss": before}
    )
    assert told in eval_table.verdict(found)


@pytest.mark.parametrize(("documents", "on"), [(1, "one document"), (5, "5 documents")])
def test_few_documents_show_no_difference_and_few_tokens_are_rough(documents: int, on: str) -> None:
    alone = {"loss": [2.0, 2.0, 2.0], "kl_to_teacher": [-0.04, -0.04, -0.04], "loss_beyond_teacher": [0.5, 0.5, 0.5]}
    found = eval_table.Findings(
        "a", "b", documents=documents, tokens=68, figures=alone, before={"loss": 3.0}, teacher={"loss": 1.5}
    )
    found.tasks = {"cloze": {"questions": 0, "guessing": 0.25}}
    found.verdict = eval_table.verdict(found)
    assert found.verdict.startswith(f"The loss is 2.000 (before 3.000, the teacher's 1.500), on {on}:")
    told = eval_table.table(found)
    assert "95%" not in told, "nothing is known of how documents vary"
    assert f"68 tokens, {on.replace('one', '1')}\n" in told
    assert "KL to the teacher    0.000" in told
    assert "not asked: no text here is long enough" in told
    assert told.endswith("The hold-out has only 68 tokens: figures measured with it are rough.")


class _Conversation:
    """The hold-out of a run with one conversation and one plain text, as a token file gives it."""

    def num_rows(self, _split: str) -> int:
        return 1

    def rows(self, _split: str, _picked: list[int]) -> Any:
        words = [
            "system",
            "you",
            "are",
            "kind",
            "user",
            "where",
            "assistant",
            "under",
            "it",
            ".",
            "a",
            "plain",
            "text",
            "follows",
        ]
        scored = [word in ("under", "it", ".", "plain", "text", "follows") for word in words]
        begins = [word in ("system", "a") for word in words]
        return SimpleNamespace(tokens=np.array([words]), scored=np.array([scored]), begins=np.array([begins]))


class _Joined:
    def decode(self, words: list[str], **_named: Any) -> str:
        return " ".join(words)


def test_questions_about_a_conversation_are_made_of_its_answers() -> None:
    """The system prompt of a template is in each conversation, and a student would be asked for it."""
    texts, num_bytes = command._texts_of(_Conversation(), _Joined())
    assert texts == ["under it .", "a plain text follows"]
    assert num_bytes == len("under it . plain text follows")


@pytest.mark.slow
def test_a_run_is_judged_on_its_own_holdout(tmp_path: Path, capsys: Any) -> None:
    home = tmp_path / "run"
    done = run("--teacher", tiny_model("llama"), "--student", "from-teacher", "--student_layers", 2,
               "--data", write_texts(tmp_path / "texts"), *QUICK, "--output_dir", home)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((home / "report.json").read_text())
    assert command.main([str(home), "--json", "--questions", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["loss"][0] == pytest.approx(report["student_after"]["holdout_loss"], rel=1e-3)
    assert found["figures"]["kl_to_teacher"][0] == pytest.approx(report["student_after"]["kl_to_teacher"], rel=0.02)
    assert found["teacher"]["loss"] == pytest.approx(report["teacher"]["holdout_loss"], rel=1e-6)
    assert found["before"]["loss"] == report["student_before"]["holdout_loss"]
    assert found["figures"]["bits_per_byte"][0] == pytest.approx(report["student_after"]["bits_per_byte"], rel=1e-3)


def test_the_help_names_the_tasks_that_there_are() -> None:
    """The command has a list of its own, so that ``--help`` does not import torch."""
    assert tuple(GUESSING) == command.TASKS
