"""The preview shows the first rows as a run makes them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from engine.data.row_preview import RowRequest, first_rows, rows_from_json
from engine.data.tokens import TokenFile
from engine.errors import DataError, ModelError
from engine.model_files.spec import read_spec
from engine.models.load import load_tokenizer
from tests.engine.data.small_data import make_bos_model, make_chat_model, run_prepare, write_chats
from tests.tiny import tiny_model, tiny_texts


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number, text in enumerate(tiny_texts(40)):
        (folder / f"{number:02}.txt").write_text(f"[{number}] {text}\n")
    return folder


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    return make_chat_model(tmp_path / "chat-model")


def request(model: Path, data: Path, **other: object) -> RowRequest:
    values = {
        "teacher": str(model), "data": str(data), "text_field": None, "data_split": "train", "sequence_length": 48,
        "packing": True, "holdout": 0.2, "trust_remote_code": False,
    }  # fmt: skip
    return RowRequest(**{**values, **other})  # type: ignore[arg-type]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("of_chat", [True, False])
def test_the_rows_are_those_of_the_run(
    tmp_path: Path, notes: Path, chat_model: Path, packing: bool, of_chat: bool
) -> None:
    model = chat_model if of_chat else tiny_model("llama")
    data = write_chats(tmp_path / "chat.jsonl") if of_chat else notes
    run_prepare(
        data, tmp_path / "tokens.h5", teacher=read_spec(model), student=None, sequence_length=48, packing=packing
    )
    shown = first_rows(request(model, data, packing=packing), most=3)
    tokenizer = load_tokenizer(model)
    with TokenFile(tmp_path / "tokens.h5") as file:
        rows = file.rows("train", range(3))
    assert len(shown) == 3
    for number, row in enumerate(shown):
        length = int(rows.lengths[number])
        assert (row.tokens, row.learned) == (length, int(rows.scored[number].sum()))
        text = "".join(piece.text for piece in row.pieces if piece.kind != "border")
        assert text == tokenizer.decode(rows.tokens[number, :length], clean_up_tokenization_spaces=False)


def test_borders_name_the_document_that_begins(notes: Path) -> None:
    row = first_rows(request(tiny_model("llama"), notes), most=1)[0]
    names = [piece.text for piece in row.pieces if piece.kind == "border"]
    assert names[0] == "00.txt"
    assert len(names) > 1
    assert names == sorted(set(names))
    assert [piece.kind for piece in row.pieces][:3] == ["border", "learned", "border"]
    assert row.pieces[1].text.endswith("<|endoftext|>")


def test_a_row_that_begins_with_a_beginning_of_text_token_keeps_its_borders(notes: Path, tmp_path: Path) -> None:
    bos_model = make_bos_model(tmp_path / "model")
    tokenizer = load_tokenizer(bos_model)
    for row in first_rows(request(bos_model, notes, sequence_length=40), most=4):
        texts = [piece.text for piece in row.pieces if piece.kind != "border"]
        assert texts[0].startswith(tokenizer.bos_token)
        for piece, after in zip(row.pieces, row.pieces[1:], strict=False):
            if after.kind == "border":
                assert piece.text.endswith("<|endoftext|>")


def test_of_conversations_what_is_learned_is_told_from_what_is_read(tmp_path: Path, chat_model: Path) -> None:
    row = first_rows(request(chat_model, write_chats(tmp_path / "chat.jsonl"), sequence_length=200), most=1)[0]
    learned = "".join(piece.text for piece in row.pieces if piece.kind == "learned")
    read = "".join(piece.text for piece in row.pieces if piece.kind == "read")
    assert "answer" in learned
    assert "question" not in learned
    assert "question" in read
    assert "answer" not in read


def test_what_is_wrong_is_said_in_the_words_of_the_run(tmp_path: Path, notes: Path) -> None:
    with pytest.raises(ModelError, match="There is no folder"):
        first_rows(request(tmp_path / "gone", notes))
    (tmp_path / "one.txt").write_text("a")
    with pytest.raises(DataError, match="no row to train on"):
        first_rows(request(tiny_model("llama"), tmp_path / "one.txt", holdout=0.5, sequence_length=2))


@pytest.mark.slow  # a process that imports transformers
def test_the_process_answers_in_json(notes: Path, tmp_path: Path) -> None:
    asked = request(tiny_model("llama"), notes)

    def ask(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "engine.data.row_preview"], input=text, capture_output=True, text=True
        )

    answer = ask(json.dumps(asdict(asked)))
    assert rows_from_json(answer.stdout) == first_rows(asked)
    answer = ask(json.dumps(asdict(request(tmp_path / "gone", notes))))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("There is no folder")
