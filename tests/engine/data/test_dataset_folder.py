"""Folders of data sets are their training split; folders of notes are all of their notes."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest

from engine.data.arrow import read_arrow
from engine.data.dataset_folder import files_of_split
from engine.data.folder import FoundFile
from engine.data.sources import TextSource, open_source
from engine.data.tally import Tally
from engine.errors import DataError

CARD = "---\nlicense: mit\n---\n# CARDWORD\n"
SHARDS = "-00000-of-00001.parquet"


def write(folder: Path, path: str, content: str | None = None) -> None:
    """A file with its own path as its text, in the form of its suffix."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        file.write_text(content)
    elif path.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": [path]}), file)
    elif path.endswith(".arrow"):
        pyarrow = pytest.importorskip("pyarrow")
        table = pyarrow.table({"text": [path]})
        with pyarrow.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table)
    elif path.endswith((".jsonl", ".json")):
        file.write_text(json.dumps({"text": path}) + "\n")
    elif path.endswith(".csv"):
        file.write_text(f"id,text\n1,{path}\n")
    else:
        file.write_text(path)


def opened(folder: Path, split: str = "train") -> tuple[set[str], TextSource]:
    source = open_source(str(folder), text_field=None, split=split)
    return {document.text for document in source.documents()}, source


def read(folder: Path, split: str = "train") -> set[str]:
    return opened(folder, split)[0]


LAYOUTS: dict[str, tuple[list[str], list[str]]] = {
    # Files that are read, and files that are not.
    "shards": ([f"data/train{SHARDS}"], [f"data/validation{SHARDS}", f"data/test{SHARDS}"]),
    "files": (["train.jsonl"], ["valid.jsonl", "test.jsonl", "extra.jsonl"]),
    "in data": (["data/train.jsonl"], ["data/dev.jsonl", "data/eval.jsonl"]),
    "folders": (["train/a.csv", "train/b/c.csv"], ["test/a.csv", "val/a.csv", "evaluation/d.csv"]),
    "folders of texts": (["train/pos/1.txt", "train/neg/2.txt"], ["test/pos/3.txt", "dev/4.txt"]),
    "words in names": (["squad-train-v2.json", "more_training.csv"], ["squad-dev-v2.json", "my_test_1.csv"]),
    "texts": (["ptb.train.txt"], ["ptb.valid.txt", "ptb.test.txt"]),
    "capitals": (["Train.csv"], ["TEST.csv"]),
    "own split names": ([f"data/train_sft{SHARDS}", f"data/train_gen{SHARDS}"], [f"data/test_sft{SHARDS}"]),
    "another split": ([f"data/train{SHARDS}"], [f"data/unsupervised{SHARDS}"]),
    "configurations": ([f"en/train{SHARDS}", f"de/train{SHARDS}"], [f"en/test{SHARDS}", f"de/test{SHARDS}"]),
    "saved to disk": (
        ["train/data-00000-of-00001.arrow"],
        ["test/data-00000-of-00001.arrow", "train/cache-1a2b.arrow"],
    ),
    "no training split by name": (["corpus.jsonl", "more.jsonl"], ["test.jsonl"]),
    "beside notes": (["squad/train.jsonl", "notes/test.md", "notes/train of thought.md"], ["squad/test.jsonl"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_a_data_set_is_its_training_split(tmp_path: Path, layout: str) -> None:
    wanted, others = LAYOUTS[layout]
    for path in (*wanted, *others):
        write(tmp_path, path)
    for path in ("LICENSE", "LICENSE.txt", "COPYING.md", ".gitattributes", "CITATION.cff"):
        write(tmp_path, path, f"{path} LICENCEWORD")
    write(tmp_path, "README.md", CARD)
    for name in ("dataset_infos.json", "dataset_dict.json", "train/dataset_info.json"):
        write(tmp_path, name, '{"description": "words about it", "text": "none of the text"}')
    write(tmp_path, "train/state.json", '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    found, source = opened(tmp_path)
    assert found == set(wanted)
    said = " ".join(source.skipped)
    for name in ("README.md", "LICENSE.txt", "COPYING.md", "dataset_infos.json", "dataset_dict.json"):
        assert name in said
    assert source.skipped["hidden file or folder"] == 1
    splits = {"dev", "test", "val", "eval"}
    if any(word in path.lower() for path in others for word in splits):
        assert "split" in said


@pytest.mark.parametrize(
    "paths",
    [
        ["README.md", "one.md", "two.txt"],
        ["README.md", "test.md", "train.md", "eval.md"],
        ["README.txt", "test.txt", "flight.txt", "LICENSE.md"],
        ["README.md"],
        ["readme.md", "tests/notes.md", "train/ticket.md"],
        ["test.jsonl"],
        ["validation.csv", "test.csv"],
        ["training.txt", "running.txt", "README.md"],
        ["security-notes.md", "authors I like.md", "rows.csv"],
        ["2024/test drive.md", "2024/trip.md"],
    ],
)
def test_a_folder_of_notes_is_all_of_its_notes(tmp_path: Path, paths: list[str]) -> None:
    for path in paths:
        write(tmp_path, path)
    assert read(tmp_path) == set(paths)


def test_a_card_with_a_head_is_text_where_there_are_only_notes(tmp_path: Path) -> None:
    write(tmp_path, "README.md", "---\ntitle: Notes\ntags: [a]\n---\nWords of mine.\n")
    write(tmp_path, "one.md")
    assert len(read(tmp_path)) == 2


def test_the_card_is_no_text_beside_rows_of_no_split(tmp_path: Path) -> None:
    write(tmp_path, "README.md", CARD)
    write(tmp_path, "LICENSE.txt", "licence words")
    write(tmp_path, "rows.parquet")
    write(tmp_path, "notes.md")
    assert read(tmp_path) == {"rows.parquet", "notes.md"}


@pytest.mark.parametrize(
    ("split", "wanted"),
    [
        ("validation", {f"data/validation{SHARDS}"}),
        ("test", {f"data/test{SHARDS}", f"data/test_sft{SHARDS}"}),
        ("test_sft", {f"data/test_sft{SHARDS}"}),
        ("train+validation", {f"data/train{SHARDS}", f"data/validation{SHARDS}"}),
    ],
)
def test_another_split_can_be_chosen(tmp_path: Path, split: str, wanted: set[str]) -> None:
    for name in ("train", "validation", "test", "test_sft"):
        write(tmp_path, f"data/{name}{SHARDS}")
    write(tmp_path, "README.md", CARD)
    assert read(tmp_path, split) == wanted


def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    write(tmp_path, "test.jsonl")
    with pytest.raises(DataError, match="no split 'holdout'") as caught:
        read(tmp_path, "holdout")
    assert "'test', 'train'" in caught.value.why
    assert caught.value.todo == "Choose one of these with --data_split."
    assert read(tmp_path, "test") == {"test.jsonl"}
    (tmp_path / "notes").mkdir()
    write(tmp_path, "notes/a.md")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "notes", "test")
    assert caught.value.todo == "Leave out --data_split."
    assert read(tmp_path / "notes") == {"notes/a.md"}


def test_a_split_of_a_single_file_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl")
    with pytest.raises(DataError, match="one file") as caught:
        read(tmp_path / "rows.jsonl", "test")
    assert "--data_split" in caught.value.todo
    assert read(tmp_path / "rows.jsonl") == {"rows.jsonl"}
    write(tmp_path, "test.jsonl")
    assert read(tmp_path / "test.jsonl", "test") == {"test.jsonl"}


def test_a_card_that_names_its_files_is_obeyed(tmp_path: Path) -> None:
    card = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: ["first/*.csv", "deep/**/*.csv"]
  - split: test
    path: second/*.csv
---
"""
    for path in ("first/a.csv", "deep/b/c/d.csv", "second/train.csv", "third/train.csv"):
        write(tmp_path, path)
    write(tmp_path, "README.md", card)
    assert read(tmp_path) == {"first/a.csv", "deep/b/c/d.csv"}
    assert read(tmp_path, "test") == {"second/train.csv"}


@pytest.mark.parametrize("head", ["configs: [", "configs: 5", "configs:\n- data_files: 5", "a: !!python/object:os.x"])
def test_a_card_that_cannot_be_read_is_no_error(tmp_path: Path, head: str) -> None:
    write(tmp_path, "train.csv")
    write(tmp_path, "README.md", f"---\nlicense: mit\ndata_files: 5\n{head}\n---\nwords")
    assert read(tmp_path) == {"train.csv"}


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_files_are_read(tmp_path: Path, form: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    table = pyarrow.table({"id": range(500), "messages": [turns] * 500})
    new = {"stream": pyarrow.ipc.new_stream, "file": pyarrow.ipc.new_file}[form]
    with new(str(tmp_path / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=200)
    (tmp_path / "state.json").write_text("{}")
    source = open_source(str(tmp_path), text_field=None, split="train")
    documents = list(source.documents())
    assert len(documents) == 500
    assert documents[0].messages is not None
    assert source.bytes_read == source.total_bytes


def test_arrow_without_pyarrow_is_told_with_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "data-00000-of-00001.arrow")
    with monkeypatch.context() as without:
        for name in ("pyarrow", "pyarrow.ipc"):
            without.setitem(sys.modules, name, None)
        with pytest.raises(DataError, match="without pyarrow") as caught:
            read(tmp_path)
    assert "pip install pyarrow" in caught.value.todo
    assert "to_parquet" in caught.value.todo
    assert "to_json" in caught.value.todo
    assert read(tmp_path) == {"data-00000-of-00001.arrow"}  # the first way out
    other = tmp_path / "other"
    write(other, "train.jsonl")  # the second: as to_json writes
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        assert read(other) == {"train.jsonl"}


def test_damaged_arrow_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write(tmp_path, "a.arrow")
    whole = (tmp_path / "a.arrow").read_bytes()
    for content in (whole[: len(whole) // 2], b"\xff\xff\xff\xff\x10\0\0\0junk", b"words"):
        (tmp_path / "a.arrow").write_bytes(content)
        with pytest.raises(DataError) as caught:
            read(tmp_path)
        assert "damaged .arrow file" in caught.value.why


def test_files_of_programs_and_models_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("Words of mine.")
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"content": "some words of a token"}]}')
    (tmp_path / "requirements.txt").write_text("numpy")
    (tmp_path / "node_modules" / "other").mkdir(parents=True)
    (tmp_path / "node_modules" / "other" / "README.md").write_text("Words of others.")
    source = open_source(str(tmp_path), text_field=None, split="train")
    assert [document.text for document in source.documents()] == ["Words of mine."]
    assert source.skipped == {
        "node_modules (a program's folder)": 1,
        "requirements.txt (a program's file)": 1,
        "tokenizer.json (a program's file)": 1,
    }
    one = open_source(str(tmp_path / "requirements.txt"), text_field=None, split="train")  # named, it is read
    assert [document.text for document in one.documents()] == ["numpy"]


@pytest.mark.parametrize(
    "names",
    [["{}.txt"], ["train {}.jsonl", "test {}.jsonl"], ["{}/test.txt", "{}/notes.txt"], ["test {}.jsonl", "{}.jsonl"]],
)
def test_the_work_for_a_folder_grows_with_its_files_and_not_with_their_square(names: list[str]) -> None:
    files = [
        FoundFile(folder / name.format(number), name.format(number), 1, f".{name.rpartition('.')[2]}")
        for folder in [Path("/data")]
        for number in range(8_000)
        for name in names
    ]
    tally = Tally()
    kept = files_of_split(files, Path("/data"), "train", tally)
    assert len(kept) + sum(tally.skipped.values()) == len(files)


@pytest.mark.parametrize("name", ["rows.arrow", "rows.feather"])
def test_an_arrow_file_is_read_where_nothing_can_be_mapped(tmp_path, monkeypatch, name):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": ["one", "two"]})
    make = pyarrow.ipc.new_file if name.endswith("feather") else pyarrow.ipc.new_stream
    with make(str(tmp_path / name), table.schema) as writer:
        writer.write_table(table)

    def refused(path):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(pyarrow, "memory_map", refused)
    tally = Tally()
    assert [row["text"] for row in read_arrow(tmp_path / name, tally)] == ["one", "two"]
    assert not tally.skipped
