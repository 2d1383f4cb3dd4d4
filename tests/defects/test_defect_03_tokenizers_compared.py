"""In the original, teacher and student could have different tokenizers, unnoticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.data.checks import check_models
from engine.data.passes import NO_ROW
from engine.errors import ModelError, TokenizerMismatch
from engine.model_files.spec import read_spec
from tests.engine.data.small_data import run_prepare
from tests.tiny import PADDING_ROWS, VOCAB_SIZE, tiny_model, tiny_texts


def swap_two_ids(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]


def swap_two_merges(tokenizer: dict[str, Any]) -> None:
    merges = tokenizer["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def rename_the_end(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"][0]["content"] = "<|stop|>"
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["<|stop|>"] = vocabulary.pop("<|endoftext|>")


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The student, with the same name and size of vocabulary, and a tokenizer that is not the teacher's."""
    folder = tmp_path / "student"
    shutil.copytree(tiny_model(num_layers=2, seed=1), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize("change", [swap_two_ids, swap_two_merges, rename_the_end])
def test_other_tokenizer_of_the_same_size_is_refused_and_nothing_is_written(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(tiny_texts(40)))
    with pytest.raises(TokenizerMismatch, match="different tokenizers"):
        run_prepare(tmp_path / "text.txt", tmp_path / "tokens.h5", student=read_spec(changed(tmp_path, change)))
    assert not list(tmp_path.glob("tokens*"))


def test_padded_embeddings_are_no_other_tokenizer() -> None:
    padded = read_spec(tiny_model("qwen2"))
    assert padded.vocab_size == VOCAB_SIZE + PADDING_ROWS
    assert check_models(read_spec(tiny_model()), padded, 32).size == VOCAB_SIZE
    assert check_models(padded, read_spec(tiny_model()), 32).size == VOCAB_SIZE


def test_embedding_with_fewer_rows_than_ids_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_model(), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["more"] = VOCAB_SIZE
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=f"embedding of {VOCAB_SIZE} rows, and its tokenizer has {VOCAB_SIZE + 1} ids"):
        check_models(read_spec(folder), None, 32)


def test_text_with_an_added_token_that_has_no_row_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model(), tmp_path / "teacher")
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": VOCAB_SIZE}))
    texts = [*tiny_texts(40), "lamp [PAD] lamp", "[PAD]"]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    result = run_prepare(tmp_path / "text.jsonl", tmp_path / "tokens.h5", teacher=read_spec(folder))
    assert result.vocab_size == VOCAB_SIZE
    assert result.skipped == {NO_ROW: 2}
