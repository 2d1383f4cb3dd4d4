from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.data.document import Document
from engine.data.holdout import is_holdout
from engine.model_files.demo import train as module
from engine.model_files.demo.train import (
    HOLDOUT_FRACTION,
    DemoRecipe,
    build_model,
    epoch_batches,
    holdout_loss,
    learning_rate_at,
    rows_of,
    train,
    train_tokenizer,
)

TINY = DemoRecipe(
    vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, num_key_value_heads=1, intermediate_size=32,
    max_positions=64, sequence_length=16, effective_batch=4, epochs=2, warmup_steps=2,
)  # fmt: skip


def documents() -> list[Document]:
    return [
        Document(str(number), f"Entry {number} says {number * 7919} and {number % 5}. " * 4) for number in range(60)
    ]


def test_rows_are_the_documents_one_behind_the_other() -> None:
    rows = rows_of([torch.arange(5), torch.arange(5, 12)], 4, offset=1)
    assert rows.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_an_epoch_takes_no_token_twice() -> None:
    encoded = [torch.arange(start, start + 40) for start in range(0, 400, 40)]
    batches = list(epoch_batches(encoded, TINY, torch.Generator().manual_seed(1)))
    assert all(batch.shape == (4, 16) for batch in batches)
    tokens = torch.cat(batches).flatten().tolist()
    assert len(set(tokens)) == len(tokens) >= 5 * 64


def test_two_epochs_are_cut_differently() -> None:
    encoded = [torch.arange(start, start + 40) for start in range(0, 400, 40)]
    generator = torch.Generator().manual_seed(1)
    first, second = (
        {tuple(row) for batch in epoch_batches(encoded, TINY, generator) for row in batch.tolist()} for _ in range(2)
    )
    assert not first & second


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [learning_rate_at(step, 50, TINY) for step in range(51)]
    assert rates[0] == TINY.learning_rate / 2
    assert rates[1] == max(rates) == TINY.learning_rate
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(0.0)


def test_holdout_loss_is_the_models_own_loss_whatever_the_batch() -> None:
    torch.manual_seed(0)
    model = build_model(TINY, train_tokenizer(["some text"], TINY.vocab_size, TINY.max_positions))
    rows = torch.randint(0, 258, (5, 16))
    expected = model(input_ids=rows, labels=rows).loss.item()
    assert holdout_loss(model, rows, batch=2) == pytest.approx(expected, rel=1e-5)


def test_training_shows_neither_tokenizer_nor_model_a_held_out_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def spy_on_tokenizer(texts: list[str], vocab_size: int, max_positions: int) -> object:
        shown.extend(texts)
        return train_tokenizer(texts, vocab_size, max_positions)

    lengths: list[int] = []

    def spy_on_batches(encoded: Sequence[Tensor], recipe: DemoRecipe, generator: torch.Generator) -> Iterator[Tensor]:
        lengths.append(len(encoded))
        return epoch_batches(encoded, recipe, generator)

    monkeypatch.setattr(module, "python_documents", documents)
    monkeypatch.setattr(module, "train_tokenizer", spy_on_tokenizer)
    monkeypatch.setattr(module, "epoch_batches", spy_on_batches)
    train(TINY, tmp_path)
    allowed = [document.text for document in documents() if not is_holdout(document.text, HOLDOUT_FRACTION)]
    assert 0 < len(allowed) < 60
    assert shown == allowed
    assert set(lengths) == {len(allowed)}


def test_what_is_saved_loads_and_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "python_documents", documents)
    train(TINY, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    assert AutoTokenizer.from_pretrained(tmp_path).decode([*range(2, 20)])
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "Hold-out loss: **" in card
    assert "| `epochs` | 2 |" in card
