"""The original validated on the cache that it trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.data.tokens import TokenFile
from tests.engine.data.small_data import run_prepare, texts_of
from tests.tiny import tiny_texts


@pytest.mark.parametrize("packing", [True, False])
def test_no_document_is_on_both_sides_even_where_it_comes_twice(tmp_path: Path, packing: bool) -> None:
    texts = tiny_texts(40)
    (tmp_path / "notes").mkdir()
    for number, text in enumerate(texts + texts + texts[::-1]):
        (tmp_path / "notes" / f"{number:03}.txt").write_text(text)
    run_prepare(tmp_path / "notes", tmp_path / "tokens.h5", packing=packing, sequence_length=128)
    trained, held_out = texts_of(tmp_path / "tokens.h5", "train"), texts_of(tmp_path / "tokens.h5", "holdout")
    assert set(trained) & set(held_out) == set()
    assert set(trained) | set(held_out) == set(texts)
    with TokenFile(tmp_path / "tokens.h5") as file:
        assert set(file.hashes("train")) & set(file.hashes("holdout")) == set()


def test_one_file_is_split_by_its_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"{number}. {text}" for number, text in enumerate(tiny_texts(80))]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    run_prepare(tmp_path / "book.txt", tmp_path / "tokens.h5")
    trained, held_out = texts_of(tmp_path / "tokens.h5", "train"), texts_of(tmp_path / "tokens.h5", "holdout")
    sides = [[any(paragraph in text for text in side) for side in (trained, held_out)] for paragraph in paragraphs]
    assert all(sum(side) <= 1 for side in sides)
    assert [sum(side[which] for side in sides) > 0 for which in (0, 1)] == [True, True]


def test_more_rows_than_asked_for_do_not_move_a_document_to_the_other_side(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(tiny_texts(300)))
    run_prepare(tmp_path / "book.txt", tmp_path / "few.h5", samples=20)
    run_prepare(tmp_path / "book.txt", tmp_path / "all.h5")
    with TokenFile(tmp_path / "few.h5") as few, TokenFile(tmp_path / "all.h5") as every:
        assert set(few.hashes("train")) <= set(every.hashes("train"))
        assert set(few.hashes("holdout")) <= set(every.hashes("holdout"))
