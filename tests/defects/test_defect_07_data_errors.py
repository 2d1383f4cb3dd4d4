"""The original put five made-up sentences in the place of data that it could not read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine.errors import DataError
from tests.engine.data.small_data import run_prepare, texts_of
from tests.tiny import tiny_texts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.txt", b""),
        ("blank.txt", b"\n \n"),
        ("binary.txt", b"\x7fELF\0\0\0"),
        ("broken.jsonl", b'{"text": "cut o'),
        ("other.jsonl", b'{"number": 5}\n{"number": 6}\n'),
        ("unclear.csv", b"question,answer\nWhy is it so?,Because it is.\n"),
        ("damaged.parquet", b"PAR1 and no more"),
        ("scalar.json", b"5"),
    ],
)
def test_data_that_cannot_be_read_are_an_error_and_leave_nothing(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        run_prepare(tmp_path / name, tmp_path / "tokens.h5")
    assert caught.value.exit_code == 2
    assert name in caught.value.what
    assert caught.value.todo
    assert not list(tmp_path.glob("tokens*"))


def test_dataset_that_cannot_be_fetched_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Datasets:
        @staticmethod
        def load_dataset(*_: object, **__: object) -> object:
            raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    with pytest.raises(DataError, match="cannot be read") as caught:
        run_prepare("owner/name", tmp_path / "tokens.h5")
    assert caught.value.why == "Couldn't reach the hub"
    assert not list(tmp_path.glob("tokens*"))


def test_damaged_part_is_left_out_and_told_and_nothing_takes_its_place(tmp_path: Path) -> None:
    texts = tiny_texts(40)
    (tmp_path / "notes").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "notes" / f"{number:02}.txt").write_text(text)
    (tmp_path / "notes" / "bad.txt").write_bytes(b"\0" * 100)
    result = run_prepare(tmp_path / "notes", tmp_path / "tokens.h5")
    assert result.skipped == {"binary file": 1}
    written = texts_of(tmp_path / "tokens.h5", "train") + texts_of(tmp_path / "tokens.h5", "holdout")
    assert sorted(written) == sorted(texts)
