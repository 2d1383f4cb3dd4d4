from __future__ import annotations

import errno
import io
import json
import os
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.data import readers, sources
from engine.data.document import Document
from engine.data.packed import unpacked
from engine.data.sources import TextSource, open_source
from engine.data.tally import Tally
from engine.errors import DataError


def source(data: Path | str, text_field: str | None = None) -> TextSource:
    return open_source(str(data), text_field=text_field, split="train")


def documents(data: Path | str, text_field: str | None = None) -> list[Document]:
    return list(source(data, text_field).documents())


def texts(data: Path | str, text_field: str | None = None) -> list[str]:
    return [document.text for document in documents(data, text_field)]


def skipped(data: Path | str) -> dict[str, int]:
    found = source(data)
    list(found.documents())
    return found.skipped


def write_lines(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


# Every kind of file


def test_every_kind_of_file_gives_the_same_texts(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    wanted = ["One, two.\nThree.", 'A "quoted" word; ünïcödé 漢字', "Last"]
    rows = [{"id": number, "text": text} for number, text in enumerate(wanted)]
    write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "c.json").write_text(json.dumps({"version": 1, "data": rows}))
    write_lines(tmp_path / "d.json", rows)
    (tmp_path / "e.json").write_text(json.dumps(wanted))
    quoted = [text.replace('"', '""') for text in wanted]
    (tmp_path / "f.csv").write_text("id,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(quoted)))
    (tmp_path / "g.csv").write_text("\ufeffid;text\r\n" + "".join(f'{n};"{text}"\r\n' for n, text in enumerate(quoted)))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "h.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows).slice(0, 0), tmp_path / "i.parquet")
    for path in sorted(tmp_path.glob("[a-h].*")):
        assert texts(path) == wanted, path.name
    with pytest.raises(DataError, match="no usable text"):
        texts(tmp_path / "i.parquet")


def test_text_file_is_one_document_with_its_line_breaks_made_alike(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne\r\ntwo\rthree\n\nfour")
    assert documents(tmp_path / "a.txt") == [Document("a.txt", "One\ntwo\nthree\n\nfour")]


def test_long_text_file_is_cut_at_paragraph_borders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_DOCUMENT_CHARACTERS", 1000)
    text = "\n\n".join(f"Paragraph {number}. " + "word " * (number % 40) for number in range(200))
    (tmp_path / "a.md").write_text(text)
    found = documents(tmp_path / "a.md")
    assert "".join(document.text for document in found) == text
    assert all(document.text.startswith("Paragraph") for document in found)
    assert all(len(document.text) <= 1000 for document in found)
    assert len({document.name for document in found}) == len(found)


def test_record_with_a_very_long_text_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_DOCUMENT_CHARACTERS", 1000)
    write_lines(tmp_path / "a.jsonl", [{"text": "word " * 1000}, {"text": "short one"}])
    found = texts(tmp_path / "a.jsonl")
    assert "".join(found[:-1]) == "word " * 1000
    assert len(found) > 4


# Folders


def test_folder_is_read_to_its_depth_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.md", "a.txt", "b/c/0.txt", "C.TXT"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert texts(tmp_path) == ["C.TXT", "a.txt", "b/1.md", "b/2.txt", "b/c/0.txt"]


def test_links_that_go_round_are_survived_and_nothing_is_read_twice(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("text")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "again.txt").symlink_to(tmp_path / "sub" / "a.txt")
    (tmp_path / "nowhere.txt").symlink_to(tmp_path / "missing")
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    assert texts(tmp_path) == ["text"]
    counts = skipped(tmp_path)
    assert counts["folder that was already read (a link)"] == 1
    assert counts["file that was already read (a link)"] == 1
    assert counts["link that leads nowhere"] == 2


def test_what_is_no_text_is_counted_by_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    (tmp_path / "c").write_text("no suffix")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "d.txt").write_text("hidden")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.txt"))
        assert skipped(tmp_path) == {
            ".png file": 1,
            "file without a suffix": 1,
            "hidden file or folder": 1,
            "pipe, socket or device": 2,
        }


def test_file_names_that_are_no_text_survive(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe\n.txt"
    with open(path, "wb") as file:
        file.write(b"text")
    (document,) = documents(tmp_path)
    assert document.text == "text"
    document.name.encode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_among_others_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("secret")
    (tmp_path / "b.txt").chmod(0)
    assert skipped(tmp_path) == {"file that cannot be read": 1}


def test_file_that_vanished_is_counted_and_alone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("gone")
    folder, alone = source(tmp_path), source(tmp_path / "b.txt")
    (tmp_path / "b.txt").unlink()
    assert [document.text for document in folder.documents()] == ["text"]
    assert folder.skipped == {"file that cannot be read": 1}
    with pytest.raises(DataError, match="cannot be read"):
        list(alone.documents())


# Damage: passed over, counted, never repaired


@pytest.mark.parametrize(
    ("content", "wanted", "reasons"),
    [
        (b"good\nbad \xff\ngood\n" + b"more\n" * 20, "good\ngood\n" + "more\n" * 20, {"line that is not UTF-8": 1}),
        (b"more\n" * 20_000 + b"nul \0\nend", "more\n" * 20_000 + "end", {"line with NUL bytes": 1}),
    ],
)
def test_bad_lines_of_a_text_are_left_out(tmp_path: Path, content: bytes, wanted: str, reasons: dict[str, int]) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert texts(tmp_path) == [wanted]
    assert skipped(tmp_path) == reasons


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"MZ\0\1\2", "binary file"),
        (b"PK\3\4 and more", "zip archive (unpack it first; a .docx, .xlsx or .epub has to be saved as text)"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer (git lfs pull fetches the file)"),
        (b"%PDF-1.7 words", "PDF (extract its text first)"),
        (b"", "empty document"),
        (b" \n\t\n", "empty document"),
    ],
)
def test_file_that_is_no_text_is_left_out_and_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt").write_text("good")
    assert texts(tmp_path) == ["good"]
    assert skipped(tmp_path) == {reason: 1}
    with pytest.raises(DataError, match="no usable text") as caught:
        texts(tmp_path / "a.txt")
    assert f"1 × {reason}" in caught.value.why


@pytest.mark.parametrize("text", ["PK is a verb", "BZh is not a word", "PAR10 means 10", "\x28 in a bracket"])
def test_words_that_begin_like_a_packed_file_are_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert texts(tmp_path) == [text]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "json", "csv"])
def test_a_line_of_300_megabytes_takes_the_memory_of_its_pieces(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    opening = {"txt": b"", "jsonl": b'{"text": "', "json": b'[{"text": "', "csv": b'text\n"'}[suffix]
    with path.open("wb") as file:
        file.write(opening)
        for _ in range(300):
            file.write(b"endless " * 2**17)
        file.write({"txt": b"", "jsonl": b'"}\n{"text": "a"}', "json": b'"}, {"text": "a"}]', "csv": b'"\na\n'}[suffix])
    program = (
        "import resource, sys\nfrom engine.data.sources import open_source\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "documents = sum(1 for _ in open_source(sys.argv[1], text_field=None, split='train').documents())\n"
        "print(documents, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    documents, grown_kib = map(int, done.stdout.split())
    assert documents == (1200 if suffix == "txt" else 1)
    assert grown_kib < 64 * 2**10


def test_character_cut_by_a_block_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_MAX_TEXT_LINE_BYTES", 7)
    monkeypatch.setattr(readers, "_HEAD_BYTES", 8)
    text = "漢字 ünï " * 50
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert texts(tmp_path) == [text]


def test_damaged_records_are_counted_by_reason(tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": "good"}).encode(),
        b'{"text": "cut off',
        b'{"text": "bad \xff byte"}',
        b'{"text": "half \\ud800 a character"}',
        b'{"text": "nul \\u0000"}',
        b'{"text": ""}',
        b'{"text": null}',
        b'{"text": 5}',
        b'{"other": "x"}',
        b"[1, 2]",
        b"5",
        b"[" * 100_000,
        b"1" * 5_000,
        b"",
        json.dumps("a text of its own").encode(),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert texts(tmp_path) == ["good", "a text of its own"]
    assert skipped(tmp_path) == {
        "broken JSON": 1,
        "document that is not valid Unicode": 2,
        "document with NUL characters": 1,
        "empty document": 1,
        "record without 'text'": 2,
        "record whose 'text' is no text": 1,
        "JSON value that is neither text nor an object": 3,
        "JSON that is nested too deeply": 1,
    }


def test_broken_element_of_a_list_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        '[{"text": "one"}, {"text": oops}, 7, null, {"text": "brackets ]} \\" in it"}, {"te'
    )
    assert texts(tmp_path) == ["one", 'brackets ]} " in it']
    assert skipped(tmp_path) == {
        "broken JSON": 1,
        "JSON value that is neither text nor an object": 2,
        "JSON file that ends in the middle": 1,
    }


def test_broken_quotes_of_a_csv_cost_only_their_row(tmp_path: Path) -> None:
    rows = [
        '"good, 1",a',
        '"bad "quote",b',
        '"good\nover two lines",c',
        "good 2,d,too many",
        "good 3",
        '"never closed,e',
    ]
    (tmp_path / "a.csv").write_text("text,id\n" + "\n".join([*rows, "good 4,f", "good 5,g"]))
    assert texts(tmp_path) == ["good, 1", "good\nover two lines", "good 3", "good 4", "good 5"]
    assert skipped(tmp_path) == {
        "CSV row with broken quotes": 2,
        "CSV row with more fields than there are columns": 1,
    }


def test_csv_field_longer_than_pythons_usual_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"' + "word " * 100_000 + '"\n')
    assert "".join(texts(tmp_path)) == "word " * 100_000


def test_csv_whose_quotes_are_broken_everywhere_ends_soon(tmp_path: Path) -> None:
    # Each of these opens a quote that the next one closes and opens again: each would be looked for to the end.
    (tmp_path / "a.csv").write_text("text,id\ngood,1\n" + 'x","a\n' * 20_000)
    assert "good" in texts(tmp_path)
    assert skipped(tmp_path)["rest of a CSV file whose quotes are broken"] == 1


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(DataError, match="no usable text") as caught:
        texts(tmp_path)
    assert "damaged .parquet file" in caught.value.why


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "json", "csv"])
def test_one_endless_line_is_read_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    limit = 2**18
    for name in ("MAX_RECORD_BYTES", "MAX_DOCUMENT_CHARACTERS", "_MAX_TEXT_LINE_BYTES", "_BLOCK_BYTES"):
        monkeypatch.setattr(readers, name, limit)
    monkeypatch.setattr("engine.data.csv_rows.MAX_RECORD_BYTES", limit)
    path = tmp_path / f"a.{suffix}"
    opening = {"txt": b"", "jsonl": b'{"text": "', "json": b'[{"text": "', "csv": b'text\n"'}[suffix]
    with path.open("wb") as file:
        file.write(opening)
        for _ in range(64):
            file.write(b"endless " * (limit // 8))
        file.write(
            {"txt": b"", "jsonl": b'"}\n{"text": "good"}', "json": b'"}, {"text": "good"}]', "csv": b'"\ngood\n'}[
                suffix
            ]
        )
    tracemalloc.start()
    found = source(path)
    sizes = [len(document.text) for document in found.documents()]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 18 * limit
    if suffix == "txt":
        assert sum(sizes) == 64 * limit
    else:
        assert sizes == [4]
        assert sum(found.skipped.values()) == 1


@pytest.mark.slow
def test_list_of_any_length_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("w") as file:
        file.write("[")
        file.write(",".join(json.dumps({"text": f"{number} " + "word " * 100}) for number in range(40_000)))
        file.write("]")
    tracemalloc.start()
    count = sum(1 for _ in source(path).documents())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 40_000
    # How much garbage waits for its collection depends on what else is alive.
    assert peak_bytes < 4_000_000 < path.stat().st_size / 4


# Which field holds the text


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"title": "A title here", "text": "The text."}, "text"),
        ({"title": "A title here", "content": "The text."}, "content"),
        ({"url": "http", "document": "The text.", "author": "A name"}, "document"),
        ({"id": 5, "prose": "The only words here."}, "prose"),
    ],
)
def test_field_is_found_by_looking(tmp_path: Path, record: dict[str, Any], field: str) -> None:
    write_lines(tmp_path / "a.jsonl", [record])
    assert texts(tmp_path) == [record[field]]
    assert source(tmp_path).describe().text_field == field


def test_unclear_field_is_an_error_that_names_the_fields(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"title": "Why is it?", "summary": "Because it is."}])
    with pytest.raises(DataError, match="not clear which field") as caught:
        documents(tmp_path)
    assert "'title', 'summary'" in caught.value.why
    assert "--text_field" in caught.value.todo
    assert texts(tmp_path, "summary") == ["Because it is."]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_wrong_field_is_an_error_that_names_those_there_are(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text('{"id": 1, "text": "words"}' if suffix == "jsonl" else "id,text\n1,words\n")
    with pytest.raises(DataError, match="no field 'body'") as caught:
        documents(path, "body")
    assert "'id', 'text'" in caught.value.why


def test_settings_file_among_texts_is_not_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Notes")
    (tmp_path / "package.json").write_text('{"version": "1.2.3"}')
    assert texts(tmp_path) == ["# Notes"]
    assert skipped(tmp_path) == {"file without clear text field": 1}


def test_conversations_are_recognised(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    rows = [
        {"text": "rendered", "messages": turns},
        {"messages": []},
    ]
    write_lines(tmp_path / "a.jsonl", rows)
    (document,) = documents(tmp_path)
    assert document.messages == (
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes."},
    )
    assert skipped(tmp_path) == {"record whose 'messages' holds no conversation": 1}
    assert source(tmp_path).describe().has_messages
    assert texts(tmp_path, "text") == ["rendered"], "the user may choose the plain text"


def test_one_conversation_as_a_file_is_a_conversation(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    (tmp_path / "a.json").write_text(json.dumps({"messages": turns}))
    (document,) = documents(tmp_path)
    assert document.messages is not None


# Files that cannot be read at all


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.txt", "no file or folder"),
        ("./missing", "no file or folder"),
        ("a/b/c", "no file or folder"),
        ("nul\0", "no file or folder"),
        ("x" * 5000, "no file or folder"),
        ("", "no file or folder"),
    ],
)
def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "":
        with pytest.raises(DataError):
            source(name)
        return
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=said):
        documents(name)


def test_empty_folder_and_folder_without_text_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text") as caught:
        source(tmp_path)
    assert caught.value.why == "The folder is empty."
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError) as caught:
        source(tmp_path)
    assert "1 × .png file" in caught.value.why


def test_kind_of_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match="formatted document") as caught:
        source(tmp_path / "a.pdf")
    assert "Extract its text" in caught.value.todo
    (tmp_path / "a.png").write_bytes(b"PNG")
    with pytest.raises(DataError, match="not a supported file type") as caught:
        source(tmp_path / "a.png")
    assert ".jsonl" in caught.value.todo


def test_missing_extras_name_the_command_that_installs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="without pyarrow") as caught:
        documents(tmp_path)
    assert "pip install pyarrow" in caught.value.todo
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="no file or folder owner/name") as caught:
        documents("owner/name")
    assert "pip install datasets" in caught.value.todo


def test_dataset_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Datasets:
        @staticmethod
        def load_dataset(*arguments: Any, **named: Any) -> Any:
            asked.append((arguments, named))
            if named["split"] == "test":
                raise ValueError("Unknown split\nand more")
            return iter([{"text": "one"}, {"text": "two"}])

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert texts("owner/name:small") == ["one", "two"]
    assert asked == [(("owner/name", "small"), {"split": "train", "streaming": True})]
    with pytest.raises(DataError, match="split test") as caught:
        list(open_source("owner/name", text_field=None, split="test").documents())
    assert caught.value.why == "Unknown split"


def test_built_in_text_has_a_name_of_its_own() -> None:
    found = source("python-docs")
    assert next(iter(found.documents())).text
    assert found.whole_documents


def fails(*_words: object, **_named: object) -> bytes:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_an_error_of_the_disk_is_not_a_damaged_file(name, tmp_path, monkeypatch):
    """A disk that failed once had the file called damaged, and a run without its text was offered."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / name).write_bytes(b"something")
    monkeypatch.setattr(parquet, "ParquetFile", fails)
    monkeypatch.setattr(pyarrow, "memory_map", fails)
    monkeypatch.setattr(pyarrow, "OSFile", fails)
    with pytest.raises(DataError, match="Input/output error"):
        texts(tmp_path / name)


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd"])
def test_an_error_of_the_disk_is_no_damage_of_a_compressed_file(packing):
    if packing == "zstd":
        pytest.importorskip("pyarrow")  # reads it where nothing else does
    file = io.BytesIO(b"something")
    failing = SimpleNamespace(read=fails, readinto=fails, seek=file.seek, tell=file.tell, closed=False, readable=bool)
    with pytest.raises(OSError, match="Input/output error"):
        list(unpacked(failing, packing, 9, Tally()))
