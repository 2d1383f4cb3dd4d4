"""Files as people have them: compressed, from Windows, wrapped, in folders of data sets. Nothing is lost unsaid."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.data import file_kinds, packed
from engine.data.json_table import AS_TABLE
from engine.data.left_out import left_out
from engine.data.sources import TextSource, open_source
from engine.data.tally import Tally, notes_in_words
from engine.errors import DataError

TEXTS = [f"Text {number} of the river, the stone and the lamp." for number in range(20)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def read(data: Path, **other: Any) -> tuple[list[str], TextSource]:
    source = open_source(str(data), **{"text_field": None, "split": "train", **other})
    return [document.text for document in source.documents()], source


def zstd(content: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}

# Compressed files


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jsonl", LINES),
        (".ndjson", LINES),
        (".json", json.dumps([{"text": text} for text in TEXTS]).encode()),
        (".json", json.dumps({"version": 1, "data": [{"text": text} for text in TEXTS]}).encode()),
        (".csv", ("id,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(TEXTS))).encode()),
        (".tsv", ("id\ttext\n" + "".join(f"{n}\t{text}\n" for n, text in enumerate(TEXTS))).encode()),
    ],
    ids=["jsonl", "ndjson", "json", "wrapper", "csv", "tsv"],
)
def test_a_compressed_file_gives_the_texts_of_the_plain_one(
    tmp_path: Path, packing: str, suffix: str, content: bytes
) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    (tmp_path / f"b{suffix}{packing}").write_bytes(PACKINGS[packing](content))
    # Two streams one behind the other are one file for each of these programs.
    half = content.index(b"\n") + 1 if b"\n" in content else len(content) // 2
    two = PACKINGS[packing](content[:half]) + PACKINGS[packing](content[half:])
    (tmp_path / f"c{suffix}{packing.upper()}").write_bytes(two)
    (tmp_path / f"d{suffix}").write_bytes(PACKINGS[packing](content))
    for name in (f"a{suffix}", f"b{suffix}{packing}", f"c{suffix}{packing.upper()}", f"d{suffix}"):
        found, source = read(tmp_path / name)
        assert found == TEXTS, name
        assert source.skipped == {}
        assert source.bytes_read == source.total_bytes
    found, _ = read(tmp_path)
    assert found == TEXTS * 4


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_compressed_text_without_another_suffix_is_known_by_its_content(tmp_path: Path, packing: str) -> None:
    (tmp_path / f"notes{packing}").write_bytes(PACKINGS[packing](b"Plain words.\nAnd more."))
    (tmp_path / f"rows{packing}").write_bytes(PACKINGS[packing](LINES))
    assert read(tmp_path / f"notes{packing}")[0] == ["Plain words.\nAnd more."]
    assert read(tmp_path / f"rows{packing}")[0] == TEXTS


NUM_ROWS = 4_000


@pytest.mark.parametrize("hidden", [None, "zstandard"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_damaged_compressed_file_is_read_to_the_damage_and_told(
    tmp_path: Path, packing: str, hidden: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hidden is not None:
        if packing != ".zst":
            pytest.skip("Python reads it itself")
        monkeypatch.setitem(sys.modules, hidden, None)
    # More than one block of any format, of text that hardly gets smaller, in few rows: most time goes into rows.
    chance = random.Random(1)
    many = b"".join(json.dumps({"text": chance.randbytes(200).hex()}).encode() + b"\n" for _ in range(NUM_ROWS))
    whole = PACKINGS[packing](many)
    (tmp_path / f"a.jsonl{packing}").write_bytes(whole[: len(whole) - len(whole) // 4])
    found, source = read(tmp_path / f"a.jsonl{packing}")
    assert 0 < len(found) < NUM_ROWS
    assert any("damaged" in reason for reason in source.skipped)


def test_zstd_without_a_library_is_told_with_the_one_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(LINES))
    for library in ("compression.zstd", "compression", "zstandard", "pyarrow"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl.zst")
    assert packed.NO_ZSTD in caught.value.why
    assert "pip install zstandard" in packed.NO_ZSTD
    monkeypatch.undo()  # the way out: a library that reads it
    assert read(tmp_path / "a.jsonl.zst")[0] == TEXTS


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.7z"])
def test_archives_are_refused_by_name_alone_and_counted_in_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match="archive") as caught:
        read(tmp_path / name)
    assert "Unpack it" in caught.value.todo
    (tmp_path / "b.jsonl").write_bytes(LINES)
    found, source = read(tmp_path)
    assert found == TEXTS
    assert [(reason.endswith("archive (unpack it first)"), count) for reason, count in source.skipped.items()] == [
        (True, 1)
    ]


def test_a_tar_under_another_name_is_told(tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "in.txt").write_text("words")
    with tarfile.open(tmp_path / "a.jsonl.gz", "w:gz") as tar:
        tar.add(tmp_path / "in.txt", "in.txt")
    with pytest.raises(DataError, match="no usable text") as caught:
        read(tmp_path / "a.jsonl.gz")
    assert "tar archive" in caught.value.why


# Names that say something else than the content


@pytest.mark.parametrize("suffix", [".txt", ".md", ".txt.gz"])
@pytest.mark.parametrize(
    "content", [LINES, json.dumps([{"text": text} for text in TEXTS], indent=1).encode()], ids=["lines", "list"]
)
def test_json_under_the_name_of_a_text_is_never_learned_as_it_stands(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    found, source = read(path)
    assert found == TEXTS
    assert "JSON" in notes_in_words(source.notes)[0]


@pytest.mark.parametrize(
    "text",
    [
        "{braces} begin this note\nand words follow",
        "[a link](to)\n\n- a list",
        '{"text": "one line"}\n\nIs JSON.\n' * 3,
    ],
)
def test_a_note_with_braces_in_it_stays_a_note(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.md").write_text(text)
    assert read(tmp_path / "a.md")[0] == [text]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".ndjson"])
def test_lists_and_lines_are_told_apart_by_content(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_text(json.dumps([{"text": text} for text in TEXTS], indent=2))
    (tmp_path / f"b{suffix}").write_bytes(LINES)
    assert read(tmp_path / f"a{suffix}")[0] == TEXTS
    assert read(tmp_path / f"b{suffix}")[0] == TEXTS


def test_parquet_under_another_name_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "a.jsonl")
    found, source = read(tmp_path / "a.jsonl")
    assert found == TEXTS
    assert source.notes


# Encodings

WESTERN = ["Café zu Größe — 5 €", "plain text", "L’été à Málaga: «sí», señor", "naïve façade"]


def rows_in(form: str, texts: list[str]) -> str:
    if form == "jsonl":
        return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts)
    if form == "json":
        return json.dumps([{"text": text} for text in texts], ensure_ascii=False, indent=1)
    if form == "txt":
        return "\r\n".join(texts)
    delimiter = {"csv": ";", "tsv": "\t"}[form]
    return f"id{delimiter}text\r\n" + "".join(f'{n}{delimiter}"{text}"\r\n' for n, text in enumerate(texts))


FORMS = ["jsonl", "json", "txt", "csv", "tsv"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "cp1252 with gzip"]
)
def test_every_encoding_gives_the_same_texts(tmp_path: Path, form: str, encoding: str) -> None:
    texts = WESTERN * 5
    content = rows_in(form, texts).encode(encoding.split()[0])
    path = tmp_path / f"a.{form}"
    path.write_bytes(gzip.compress(content) if "gzip" in encoding else content)
    found, source = read(path)
    assert found == (["\n".join(texts)] if form == "txt" else texts)
    assert source.skipped == {}
    name = {"utf-8": "UTF-8", "utf-1": "UTF-16", "utf-3": "UTF-32", "cp125": "Windows-1252"}[encoding[:5]]
    assert [name in note for note in notes_in_words(source.notes)] == ([] if name == "UTF-8" else [True])


@pytest.mark.parametrize(
    "text",
    [
        "Größe, Übung, naïve Idee, Café, façade",
        "L'été dernier, les élèves étaient à la forêt où ça fût œuvre",
        "El niño está en España, ¿qué tú pingüino?",
        "A manhã está fria, os corações não têm opções à mão",
        "Perché la città è così, più o meno, però no",
        "Här är en ö på sjön, Åke",
        "Blåbærgrød på øen, årligt æble",
        "Það er gott veður og börnin leika sér úti, mjög þýðingarmikið",
        "Täna on ilus ilm, lapsed mängivad õues, öö",
        "Il 1º maggio, la 2ª volta, nº 3",
        "The naïve café in Zürich and Ångström's façade",
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_every_language_of_windows_1252_is_read(tmp_path: Path, form: str, text: str) -> None:
    texts = [text, "plain words", f"{text}. Again: {text}"] * 4
    path = tmp_path / f"a.{form}"
    path.write_bytes(rows_in(form, texts).encode("cp1252"))
    found, source = read(path)
    assert found == (["\n".join(texts)] if form == "txt" else texts)
    assert source.skipped == {}


def test_windows_1252_is_told_with_how_many_lines_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id;text\r\n1;Caf\xe9 zu\r\n2;plain text\r\n")
    found, source = read(tmp_path / "a.csv")
    assert found == ["Café zu", "plain text"]
    assert notes_in_words(source.notes) == ["Read as Windows-1252: a.csv (1 of 3 lines are not UTF-8)."]


def test_letters_far_behind_in_a_file_do_not_lose_their_rows(tmp_path: Path) -> None:
    rows = [*["all of it is ASCII " * 5] * 20_000, *["Grüße aus Köln"] * 100]
    (tmp_path / "a.jsonl").write_bytes("".join(f'{{"text": "{row}"}}\n' for row in rows).encode("cp1252"))
    found, source = read(tmp_path / "a.jsonl")
    assert found == rows
    assert source.skipped == {}


@pytest.mark.parametrize("form", ["jsonl", "csv", "txt"])
@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Снег лежит на камнях у реки"),
        ("koi8-r", "Снег лежит на камнях у реки"),
        ("shift-jis", "川の石とランプの光"),
        ("gbk", "河边的石头和灯"),
        ("cp850", "Grüße für große Häuser, schöne Töne"),
        ("mac-roman", "Grüße für große Häuser, schöne Töne"),
        ("cp1250", "Żółta łódź płynie wśród gęstej mgły"),
        ("cp1250", "A gyerekek az őszi erdőben játszanak, a tűz mellett"),
        ("cp1250", "Čovjek će doći sutra, a žena čeka"),
        ("cp1250", "Astăzi este o zi frumoasă şi copiii se joacă afară"),
        ("cp1254", "Işık yandı ve gittiğimiz yer güzel bir şehirdi, çocuklar dışarıda"),
        ("cp1257", "Šiandien gražus oras, žmogus ateis į mišką"),
        ("cp1257", "Cilvēks nāks rīt uz mežu, bērni spēlējas ārā"),
        ("cp1253", "Σήμερα είναι μια όμορφη μέρα"),
        ("cp1255", "שלום עולם היום יפה"),
        ("cp1256", "الطقس جميل اليوم"),
        ("cp437", "Où est le café déjà vu à la forêt"),
    ],
)
def test_an_encoding_that_is_not_known_refuses_the_file_and_not_some_rows_of_it(
    tmp_path: Path, form: str, encoding: str, text: str
) -> None:
    texts = [text, "plain words", text + " again", "more plain words"] * 5
    path = tmp_path / f"a.{form}"
    path.write_bytes(rows_in(form, texts).encode(encoding))
    with pytest.raises(DataError, match="no usable text") as caught:
        read(path)
    assert "of 2" in caught.value.why
    assert "save it as UTF-8" in caught.value.why
    path.write_bytes(path.read_bytes().decode(encoding).encode())  # the way out
    assert read(path)[0] == (["\n".join(texts)] if form == "txt" else texts)


def test_a_damaged_line_of_a_utf8_file_costs_that_line(tmp_path: Path) -> None:
    rows = [f'{{"text": "Größe {number}"}}'.encode() for number in range(20)]
    rows[3] = b'{"text": "Gr\xf6\xdfe 3"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    found, source = read(tmp_path / "a.jsonl")
    assert len(found) == 19
    assert source.skipped == {"document that is not valid Unicode": 1}


@pytest.mark.parametrize("form", FORMS)
def test_a_byte_order_mark_loses_nothing_at_the_beginning_or_where_files_were_joined(tmp_path: Path, form: str) -> None:
    content = b"\xef\xbb\xbf" + rows_in(form, TEXTS).encode()
    (tmp_path / f"a.{form}").write_bytes(content)
    found, source = read(tmp_path / f"a.{form}")
    assert found == (["\n".join(TEXTS)] if form == "txt" else TEXTS)
    assert source.skipped == {}
    if form in ("jsonl", "txt"):
        (tmp_path / f"b.{form}").write_bytes(content + (b"\r\n" if form == "txt" else b"") + content)
        found, source = read(tmp_path / f"b.{form}")
        assert "\ufeff" not in "".join(found)
        assert "".join(found).count("river") == 40
        assert source.skipped == {}


# CSV from other programs


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ('sep=;\r\nid;text\r\n1;"a; b"\r\n2;c d\r\n', ["a; b", "c d"]),
        ('"sep=,"\nid,text\n1,one two\n', ["one two"]),
        ("sep=\t\nid\ttext\n1\tone, two; three\n", ["one, two; three"]),
        ("id|text\n1|one, two\n2|three\n", ["one, two", "three"]),
        ('"a, b";text\n1;one two\n', ["one two"]),
        ('text\n"one\nover ""two"" lines"\nthree, four\n', ['one\nover "two" lines', "three, four"]),
        ("id,text,\n1,one two,\n2,three,\n", ["one two", "three"]),
        ("id;text\n1;one two;;\n", ["one two"]),
        ("id,text\r1,one two\r2,three\r", ["one two", "three"]),
        ("\n\nid;text\n1;one two\n", ["one two"]),
        ("# made by a tool\n# in June\nid,text\n1,one two\n", ["one two"]),
        ("#id,text\n1,one two\n", ["one two"]),
        ("# text\n#1 of all, or two\n", ["#1 of all, or two"]),
    ],
)
def test_csv_of_other_programs_is_read(tmp_path: Path, content: str, wanted: list[str]) -> None:
    (tmp_path / "a.csv").write_bytes(content.encode())
    found, source = read(tmp_path / "a.csv")
    assert found == wanted
    assert source.skipped == {}


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (['"Well," he said, "no."', "plain"], ['"Well," he said, "no."', "plain"]),
        (['"unclosed', "next", 'last "'], ['"unclosed', "next", 'last "']),
        (['5" of snow', 'a "word" in it'], ['5" of snow', 'a "word" in it']),
        (['"two\nlines"', "plain"], ["two\nlines", "plain"]),
        (['"a ""word"" in it"', '"a\ttab"'], ['a "word" in it', "a\ttab"]),
    ],
)
def test_quotes_between_tabs_join_no_rows_and_lose_none(tmp_path: Path, rows: list[str], wanted: list[str]) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\n" + "".join(f"{n}\t{row}\n" for n, row in enumerate(rows)))
    found, source = read(tmp_path / "a.tsv")
    assert found == wanted
    assert source.skipped == {}


NO_NAMES = {
    "one column": "This is the first sentence.\nThis is the second one.\n",
    "four words": "The river is long\nThe lamp is bright\n",
    "a comment alone": "# a comment\nThe lamp is bright, they say\n",
    "a long text": "words and words and words and words and more\nand others of them\n",
    "questions and answers": "What is a lamp?\tIt gives light.\nWhere is it?\tUnder the window.\n",
    "labels": '"3","Wall Street and its bears","Sellers are back again"\n"1","Oil is up again","Prices rose"\n',
}


@pytest.mark.parametrize("case", NO_NAMES)
def test_a_table_without_a_row_of_names_is_refused_and_the_way_out_works(tmp_path: Path, case: str) -> None:
    path = tmp_path / ("a.tsv" if "\t" in NO_NAMES[case] else "a.csv")
    path.write_text(NO_NAMES[case])
    with pytest.raises(DataError, match=r"The first row of a\.[ct]sv does not name its columns") as caught:
        read(path)
    assert "Write a row of names above it" in caught.value.todo
    names = {"one column": "text", "a long text": "text", "questions and answers": "prompt\tcompletion"}
    names |= {"four words": "text", "a comment alone": "text"}
    path.write_text(names.get(case, "label,title,text") + "\n" + NO_NAMES[case])
    assert len(read(path)[0]) == 2, "no row is lost"


def test_a_column_whose_name_is_a_sentence_can_be_chosen(tmp_path: Path) -> None:
    name = "What do you like about the lamp in the window?"
    (tmp_path / "a.csv").write_text(f'"{name}",year\nIts light is good.,2020\n')
    assert read(tmp_path / "a.csv", text_field=name)[0] == ["Its light is good."]


def test_of_columns_with_one_name_the_first_is_read_and_the_others_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text, text ,id\nfirst of all,second of all,1\n")
    found, source = read(tmp_path / "a.csv")
    assert found == ["first of all"]
    assert notes_in_words(source.notes) == [
        "Columns of the name 'text', of which the first is read: a.csv.",
        "Read from 'text' alone, not from 'text (2)': a.csv.",
    ]


def test_spaces_behind_separators_belong_to_no_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id, text\n1, "one, two"\n2, three\n')
    assert read(tmp_path / "a.csv")[0] == ["one, two", "three"]


def test_nul_bytes_cost_their_row_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,one two\n2,th\0ree\n3,four five\n")
    (tmp_path / "b.jsonl").write_bytes(LINES + b"\0" * 4096)  # as a computer leaves a log when its power fails
    (tmp_path / "c.txt").write_bytes(b"many lines\n" * 30 + b"\0\0\0\n" + b"and more\n")
    assert read(tmp_path / "a.csv")[0] == ["one two", "four five"]
    assert read(tmp_path / "b.jsonl")[0] == TEXTS
    assert read(tmp_path / "c.txt")[0] == ["many lines\n" * 30 + "and more\n"]
    for name in ("a.csv", "b.jsonl", "c.txt"):
        assert sum(read(tmp_path / name)[1].skipped.values()) == 1


# JSON in a wrapper

WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda rows: rows,
    "version first": lambda rows: {"version": 1, "data": rows},
    "meta behind": lambda rows: {"data": rows, "meta": {"count": 3, "tags": [1, 2], "by": [{"name": "a"}]}},
    "nested": lambda rows: {"response": {"page": 1, "items": rows}},
    "other name": lambda rows: {"name": "x", "entries": rows},
    "described": lambda rows: {"description": "About the river. " * 40, "rows": rows},
    "splits": lambda rows: {"test": [{"text": "held back"}], "train": rows, "validation": [{"text": "too"}]},
}


@pytest.mark.parametrize("form", WRAPPERS)
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("small", [False, True], ids=["kept", "streamed"])
def test_rows_in_a_wrapper_are_those_of_the_plain_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, indent: int | None, small: bool
) -> None:
    if small:  # a limit that the object is beyond, and its rows are not
        monkeypatch.setattr("engine.data.readers.MAX_RECORD_BYTES", 500)
        monkeypatch.setattr("engine.data.readers._BLOCK_BYTES", 37)
    rows = [{"id": n, "text": text + ' "q" \\ ]}', "tags": ["a", {"b": [1]}]} for n, text in enumerate(TEXTS)]
    (tmp_path / "a.json").write_text(json.dumps(WRAPPERS[form](rows), indent=indent))
    found, source = read(tmp_path / "a.json")
    assert found == [row["text"] for row in rows]
    assert source.skipped == (
        {"row of the list 'test' beside 'train'": 1, "row of the list 'validation' beside 'train'": 1}
        if form == "splits"
        else {"row of the list 'meta.by' beside 'data'": 1}
        if form == "meta behind"
        else {}
    )


def test_a_split_of_a_wrapper_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(WRAPPERS["splits"]([{"text": "learned"}])))
    assert read(tmp_path / "a.json", split="test")[0] == ["held back"]


@pytest.mark.parametrize(
    "record",
    [
        {"text": "Short words here.", "spans": [{"start": 1}, {"start": 2}]},
        {"prompt": "Why is it?", "completion": "Because.", "scores": [{"value": 1}]},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    ],
)
def test_a_record_with_a_list_in_it_is_a_record(tmp_path: Path, record: dict[str, Any]) -> None:
    from engine.data.readers import read_json

    (tmp_path / "a.json").write_text(json.dumps(record))
    assert list(read_json(tmp_path / "a.json", Tally())) == [record]


def test_a_key_that_stands_twice_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one", "text": "two"}\n' * 3 + '{"text": NaN}\n{"text": "x", "n": NaN}\n'
    )
    found, source = read(tmp_path / "a.jsonl")
    assert found == ["two", "two", "two", "x"]
    assert "twice" in notes_in_words(source.notes)[0]
    assert source.skipped == {"record whose 'text' is no text": 1}


def test_json_that_is_nested_too_deeply_costs_its_record(tmp_path: Path) -> None:
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    (tmp_path / "a.jsonl").write_text(deep + '\n{"text": "good words"}\n')
    (tmp_path / "b.json").write_text(f'[{deep}, {{"text": "good words"}}]')
    (tmp_path / "c.json").write_text(f'{{"data": [{deep}, {{"text": "good words"}}]}}')
    for name in ("a.jsonl", "b.json", "c.json"):
        found, source = read(tmp_path / name)
        assert found == ["good words"], name
        assert source.skipped == {"JSON that is nested too deeply": 1}


_MEASURE = (
    "import sys\nfrom engine.data.sources import open_source\n"
    "def status(key):\n"
    "    return int(next(l for l in open('/proc/self/status') if l.startswith(key)).split()[1])\n"
    "import importlib.util\n"
    "if importlib.util.find_spec('pyarrow'): import pyarrow.parquet\n"
    "before = status('VmRSS')\n"
    "found = open_source(sys.argv[1], text_field=None, split='train')\n"
    "count = sum(1 for _ in found.documents())\n"
    "print(count, status('VmHWM') - before)"
)


def grown_mib(path: Path) -> tuple[int, float]:
    """Documents, and how many MiB reading them takes at most."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, path], capture_output=True, text=True, check=True)
    documents, kib = map(int, done.stdout.split())
    return documents, kib / 1024


@pytest.mark.slow
@pytest.mark.parametrize("form", ["list", "version first", "meta behind", "nested"])
def test_a_wrapper_of_any_size_is_read_in_little_memory(tmp_path: Path, form: str) -> None:
    rows = [{"id": n, "text": f"{n} " + "some words of a row " * 40} for n in range(24_000)]
    (tmp_path / "a.json").write_text(json.dumps(WRAPPERS[form](rows)))
    assert (tmp_path / "a.json").stat().st_size > 18e6
    documents, mib = grown_mib(tmp_path / "a.json")
    assert documents == 24_000
    assert mib < 64


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_compressed_file_is_read_in_little_memory(tmp_path: Path, packing: str) -> None:
    (tmp_path / f"a.jsonl{packing}").write_bytes(PACKINGS[packing](LINES * 5_000))
    documents, mib = grown_mib(tmp_path / f"a.jsonl{packing}")
    assert documents == 100_000
    assert mib < 64


@pytest.mark.slow
def test_a_parquet_file_of_one_row_group_is_read_in_little_memory(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [f"{n} " + f"{n * n} some words of a row " * 100 for n in range(30_000)]
    parquet.write_table(
        pyarrow.table({"text": rows}), tmp_path / "a.parquet", row_group_size=30_000, compression="none"
    )
    assert (tmp_path / "a.parquet").stat().st_size > 80e6
    documents, mib = grown_mib(tmp_path / "a.parquet")
    assert documents == 30_000
    assert mib < 64


# Columns of tables

ANSWERS = [f"Answer {number}: it stands at the river." for number in range(6)]
CHATS = [[{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}] for text in ANSWERS]
CHAT_TEXTS = [f"user: {text}\n\nassistant: Yes." for text in ANSWERS]


COLUMNS = (
    *("string", "large string", "string view", "dictionary", "dictionary of large strings", "bytes", "large bytes"),
    *("list of turns", "large list of turns", "list of two turns", "turns in columns"),
)


def text_columns() -> dict[str, Any]:
    pyarrow = pytest.importorskip("pyarrow")
    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    return {
        "string": pyarrow.array(ANSWERS),
        "large string": pyarrow.array(ANSWERS, pyarrow.large_string()),
        "string view": pyarrow.array(ANSWERS, pyarrow.string_view()),
        "dictionary": pyarrow.array(ANSWERS).dictionary_encode(),
        "dictionary of large strings": pyarrow.array(ANSWERS, pyarrow.large_string()).dictionary_encode(),
        "bytes": pyarrow.array([text.encode() for text in ANSWERS], pyarrow.binary()),
        "large bytes": pyarrow.array([text.encode() for text in ANSWERS], pyarrow.large_binary()),
        "list of turns": pyarrow.array(CHATS, pyarrow.list_(turn)),
        "large list of turns": pyarrow.array(CHATS, pyarrow.large_list(turn)),
        "list of two turns": pyarrow.array(CHATS, pyarrow.list_(turn, 2)),
        "turns in columns": pyarrow.array(
            [{key: [turn[key] for turn in chat] for key in ("role", "content")} for chat in CHATS]
        ),
    }


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_text_is_read_from_every_kind_of_column(tmp_path: Path, suffix: str, column: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"content" if "turn" not in column else "messages": text_columns()[column]})
    write_table(table, tmp_path / f"a{suffix}")
    found, source = read(tmp_path / f"a{suffix}")
    assert found == (ANSWERS if "turn" not in column else CHAT_TEXTS)
    assert source.skipped == {}


def write_table(table: Any, path: Path) -> None:
    from pyarrow import feather, parquet

    write = parquet.write_table if path.suffix == ".parquet" else feather.write_feather
    try:
        write(table, path)
    except NotImplementedError as error:  # old releases of pyarrow write fewer kinds of columns
        pytest.skip(str(error))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        ({"prompt": ANSWERS, "completion": ANSWERS, "label": [0, 1, 0, 1, 0, 1]}, 3),
        ({"messages": CHATS, "kto_tag": [0, 1, 0, 1, 0, 1]}, 3),
        ({"question": ANSWERS, "answer": [1, 2, 3, 4, 5, 6]}, 6),
        ({"text": ANSWERS, "picture": [b"\xff\xd8"] * 6, "year": [2000] * 6, "share": [0.5] * 6}, 6),
    ],
)
def test_a_table_is_read_as_the_same_records_in_json(
    tmp_path: Path, suffix: str, other: dict[str, list[Any]], wanted: int
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    write_table(pyarrow.table(other), tmp_path / f"a{suffix}")
    kept = {name: column for name, column in other.items() if name != "picture"}
    rows = [dict(zip(kept, cells, strict=True)) for cells in zip(*kept.values(), strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected, lines = read(tmp_path / "a.jsonl")
    found, source = read(tmp_path / f"a{suffix}")
    assert found == expected
    assert len(found) == wanted
    assert source.skipped == lines.skipped


def columns_of_odd_values() -> dict[str, Any]:
    pyarrow = pytest.importorskip("pyarrow")
    at = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string()), ("at", pyarrow.timestamp("ns"))])
    return {
        "a nanosecond": pyarrow.array([1], pyarrow.timestamp("ns")),
        "the time of a nanosecond": pyarrow.array([1], pyarrow.time64("ns")),
        "a nanosecond long": pyarrow.array([1], pyarrow.duration("ns")),
        "a year behind 9999": pyarrow.array([10**12], pyarrow.timestamp("s")),
        "a day behind 9999": pyarrow.array([10**7], pyarrow.date32()),
        "a long duration": pyarrow.array([10**15], pyarrow.duration("s")),
        "an unknown place": pyarrow.array([1], pyarrow.timestamp("us", "Mars/Base")),
        "bytes that are no UTF-8": pyarrow.array([b"\xff"], pyarrow.binary()).view(pyarrow.string()),
        "a moment in a turn": pyarrow.array([[{"role": "user", "content": "one", "at": 1}]], pyarrow.list_(at)),
    }


ODD_VALUES = [
    *("a nanosecond", "the time of a nanosecond", "a nanosecond long", "a year behind 9999", "a day behind 9999"),
    *("a long duration", "an unknown place", "bytes that are no UTF-8", "a moment in a turn"),
]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("column", ODD_VALUES)
def test_values_that_python_has_no_type_for_cost_no_text_beside_them(tmp_path: Path, suffix: str, column: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    odd = columns_of_odd_values()[column]
    name = "prompt" if "turn" in column else "other"
    write_table(pyarrow.table({name: odd, "completion": ["two"], "question": ["one"]}), tmp_path / f"a{suffix}")
    (found,), source = read(tmp_path / f"a{suffix}")
    assert found.startswith("user: one")
    assert found.endswith("assistant: two")
    assert source.skipped == {}


NUMBERED = {str(number): text for number, text in enumerate(TEXTS)}
TABLES: dict[str, Any] = {
    "columns as lists": {"id": list(range(len(TEXTS))), "text": TEXTS},
    "pandas": {"id": dict.fromkeys(NUMBERED, 1), "text": NUMBERED},
    "pandas by rows": {number: {"id": 1, "text": text} for number, text in NUMBERED.items()},
    "pandas in parts": {"columns": ["id", "text"], "index": [0], "data": [[1, text] for text in TEXTS]},
}


@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_table_in_one_object_is_read_by_its_rows(tmp_path: Path, form: str, indent: int | None) -> None:
    (tmp_path / "a.json").write_text(json.dumps(TABLES[form], indent=indent))
    found, source = read(tmp_path / "a.json")
    assert found == TEXTS
    assert source.skipped == {}
    assert list(source.notes) == [AS_TABLE]


@pytest.mark.parametrize(
    "record",
    [
        {"text": TEXTS[0], "tags": ["a", "b"]},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        {"conversations": ["Where?", "There."]},
        {"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}},
    ],
)
def test_a_record_of_lists_is_no_table(tmp_path: Path, record: dict[str, Any]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert len(read(tmp_path / "a.json")[0]) == 1


# Texts and objects in one file


def test_objects_behind_many_texts_are_counted(tmp_path: Path) -> None:
    rows = [*TEXTS, *TEXTS, {"text": "an object"}, {"text": "another"}]
    for suffix, content in ((".json", json.dumps(rows)), (".jsonl", "".join(json.dumps(row) + "\n" for row in rows))):
        (tmp_path / f"a{suffix}").write_text(content)
        found, source = read(tmp_path / f"a{suffix}")
        assert found == TEXTS * 2
        assert source.skipped == {"object among texts that stand alone": 2}


def test_a_comment_among_the_objects_of_a_list_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "one"}, // not "this"\n{"text": "two"}]')
    found, source = read(tmp_path / "a.json")
    assert found == ["one", "two"]
    assert source.skipped["text that stands alone among the objects of a list"] == 1


@pytest.mark.parametrize(
    "content",
    [
        '[\n{"text": "one"},\n{"text": "two"}\n]\n',
        '[{"text": "one"},\n{"text": "two"}\n]',
        '{"text": "one"},\n{"text": "two"},\n',
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".txt"])
def test_a_list_with_a_row_a_line_is_a_list(tmp_path: Path, suffix: str, content: str) -> None:
    (tmp_path / f"a{suffix}").write_text(content)
    found, source = read(tmp_path / f"a{suffix}")
    assert found == ["one", "two"]
    assert source.skipped == {}


@pytest.mark.parametrize("head", ["<!DOCTYPE html>\n<html>", "<html lang='en'>", '<?xml version="1.0"?>\n<a>'])
def test_tags_are_refused_by_suffix_and_said_in_a_text(tmp_path: Path, head: str) -> None:
    for suffix in (".html", ".xml"):
        (tmp_path / f"a{suffix}").write_text(f"{head}<p>Words of mine.</p>")
        with pytest.raises(DataError, match="holds markup") as caught:
            read(tmp_path / f"a{suffix}")
        assert "save it as .txt" in caught.value.todo
    (tmp_path / "a.txt").write_text(f"{head}<p>Words of mine.</p>")
    assert notes_in_words(read(tmp_path / "a.txt")[1].notes) == [
        "Read with its HTML or XML tags, learned as text: a.txt."
    ]
    (tmp_path / "a.txt").write_text("Words of mine.")  # the way out
    assert notes_in_words(read(tmp_path / "a.txt")[1].notes) == []


# Other kinds of files, by name and by content


@pytest.mark.parametrize("suffix", sorted(file_kinds.ALIASES))
def test_another_name_of_a_format_is_read_as_the_format(tmp_path: Path, suffix: str) -> None:
    usual = file_kinds.ALIASES[suffix]
    content = {".txt": b"Words of mine.", ".md": b"# Words of mine.", ".jsonl": LINES}.get(usual, b"PAR1")
    (tmp_path / f"a{suffix}").write_bytes(content)
    if content == b"PAR1":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import feather, parquet

        write = parquet.write_table if usual == ".parquet" else feather.write_feather
        write(pyarrow.table({"text": TEXTS}), tmp_path / f"a{suffix}")
    expected = [content.decode()] if usual in (".txt", ".md") else TEXTS
    for data in (tmp_path / f"a{suffix}", tmp_path):
        found, there = read(data)
        assert found == expected
        assert there.skipped == {}


@pytest.mark.parametrize(
    ("suffix", "todo"),
    [
        (".pdf", "pdftotext"),
        (".docx", "pandoc"),
        (".epub", "Extract its text"),
        (".html", "Extract its text"),
        (".xlsx", ".csv"),
        (".ipynb", "nbconvert"),
        (".mbox", ".jsonl with a field text"),
        (".eml", ".txt"),
        (".srt", "times"),
        (".vtt", "times"),
        (".tex", "pandoc"),
        (".sqlite", ".jsonl"),
        (".json5", "without comments"),
    ],
)
def test_a_file_whose_text_is_not_plain_is_a_loss_with_its_way_out(tmp_path: Path, suffix: str, todo: str) -> None:
    (tmp_path / f"a{suffix}").write_text("x" * 1000)
    with pytest.raises(DataError, match="not plain text") as caught:
        read(tmp_path / f"a{suffix}")
    assert todo in caught.value.todo
    (tmp_path / "b.txt").write_text("Words of mine.")
    found, there = read(tmp_path)
    assert found == ["Words of mine."]
    lost = left_out(there.tally, files=len(there.files), total_bytes=there.total_bytes, conversations=False)
    assert lost.is_most
    assert "1 of 2 files" in lost.sentences()
    assert f"{suffix} file (" in lost.sentences()


def test_source_code_beside_notes_is_told_and_is_no_loss(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n" * 1000)
    with pytest.raises(DataError, match="no text") as caught:
        read(tmp_path)
    assert "names that end in .txt" in caught.value.todo
    (tmp_path / "README.md").write_text("Words of mine.")
    _, there = read(tmp_path)
    assert there.skipped == {".py file": 1}
    assert not there.tally.unread
    (tmp_path / "a.py").rename(tmp_path / "a.py.txt")  # the way out
    assert len(read(tmp_path)[0]) == 2


LOOKS = {
    "its HTML or XML tags": [
        "<div class='a'>Words</div>\n",
        "<TEI><text>Words</text></TEI>",
        "<mediawiki><page>A</page>",
    ],
    "the times of its subtitles": [
        "1\n00:00:01,000 --> 00:00:02,000\nWords\n",
        "WEBVTT\n\n00:01.000 --> 00:02.000\nWords\n",
        "\ufeff1\r\n00:00:01,000 --> 00:00:02,000\r\nWords\r\n",
    ],
    "its mail headers": [
        "From a@example.org Thu Jan  1 00:00:00 2020\nSubject: Words\n\nWords\n",
        "Subject: Words\nMIME-Version: 1.0\n\nWords\n",
    ],
    "its LaTeX commands": ["% of mine\n\\documentclass{article}\n"],
    "its front matter": ["---\ntitle: Words\ntags:\n- a\ndate: 2020\n---\n\n# Words\n"],
}


@pytest.mark.parametrize(("part", "text"), [(part, text) for part, texts in LOOKS.items() for text in texts])
def test_a_text_that_begins_like_another_kind_of_file_is_told(tmp_path: Path, part: str, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    _, there = read(tmp_path / "a.txt")
    assert notes_in_words(there.notes) == [f"Read with {part}, learned as text: a.txt."]


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nA line above, and no names below.\n\n---\n",
        "From London it took the year 2020\nto come home.\n",
        "1\n\nThe first chapter.\n",
        "Note: a word.\n\nAnd <b>more</b>.\n",
        "a < b and b > a, so </b> is no tag",
        "He said, text is\nplain, and went\n",
        "The text, in short\nis long, or so they say\n",
        "We use \\documentclass often.\n",
    ],
)
def test_prose_is_told_nothing_of(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path / "a.txt")[1].notes == {}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_table_under_the_name_of_a_text_is_told(tmp_path: Path, delimiter: str) -> None:
    rows = [["id", "text"], ["1", "words of mine"], ["2", "and others"]]
    (tmp_path / "a.txt").write_text("".join(delimiter.join(row) + "\n" for row in rows))
    (note,) = notes_in_words(read(tmp_path / "a.txt")[1].notes)
    assert "looks like a table" in note
    (tmp_path / "a.txt").rename(tmp_path / "a.csv")  # the way out
    assert read(tmp_path / "a.csv")[0] == ["words of mine", "and others"]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_table_under_the_name_of_tsv_is_read_by_the_sign_of_its_first_row(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "a.tsv").write_text(f"id{delimiter}text\n1{delimiter}words of mine\n")
    found, there = read(tmp_path / "a.tsv")
    assert found == ["words of mine"]
    assert notes_in_words(there.notes) == [f"Read with its columns separated by {delimiter!r}: a.tsv."]
    (tmp_path / "a.tsv").write_text("text\nwords, of mine; and more\n")
    assert read(tmp_path / "a.tsv")[0] == ["words, of mine; and more"]


@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".json"])
@pytest.mark.parametrize("number", [1, 2, 20])
def test_commas_behind_rows_change_nothing(tmp_path: Path, suffix: str, number: int) -> None:
    rows = [json.dumps({"text": text}) for text in TEXTS[:number]]
    for content in (",\n".join(rows), "".join(f"{row},\n" for row in rows)):
        (tmp_path / f"a{suffix}").write_text(content)
        found, there = read(tmp_path / f"a{suffix}")
        assert found == TEXTS[:number]
        assert there.skipped == {}


OTHER_SCRIPTS = {
    "Cyrillic": "Река и камень у окна.",
    "Chinese": "河流和石头在窗户旁边，一盏灯。",
    "Thai": "แม่น้ำ และ หิน ริม หน้าต่าง",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("script", OTHER_SCRIPTS)
def test_utf16_without_a_mark_is_read_in_every_script(tmp_path: Path, form: str, order: str, script: str) -> None:
    texts = [OTHER_SCRIPTS[script]] * 5
    (tmp_path / f"a.{form}").write_bytes(rows_in(form, texts).encode(f"utf-16-{order}"))
    found, source = read(tmp_path / f"a.{form}")
    assert found == (["\n".join(texts)] if form == "txt" else texts)
    assert source.skipped == {}


@pytest.mark.parametrize("fill", [b"\0", b"\0\0", b" \0\0\n"])
def test_a_text_filled_with_zeros_is_not_taken_for_chinese(tmp_path: Path, fill: bytes) -> None:
    (tmp_path / "a.txt").write_bytes((b"a line of so many words " + fill) * 40)
    with pytest.raises(DataError):
        read(tmp_path / "a.txt")


def test_a_number_of_more_digits_than_python_reads_costs_nothing(tmp_path: Path) -> None:
    row = json.dumps({"text": "one"}).replace("}", f', "a": {"7" * 5000}}}')
    (tmp_path / "a.jsonl").write_text(f"{row}\n" + LINES.decode())
    found, there = read(tmp_path)
    assert found == ["one", *TEXTS]
    assert there.skipped == {}


@pytest.mark.parametrize("row", ['{"text": "one",}', '{"text": "one", "a": [1, 2, ]}', '{"text": "one",\t}'])
def test_a_comma_behind_the_last_element_is_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{row}\n{{"text": "two" "a"}}\n' + LINES.decode())
    assert read(tmp_path)[1].skipped == {
        "JSON with a comma behind the last element of a list or an object (take it out)": 1,
        "broken JSON": 1,
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('// of mine\n[{"text": "one"}, /* two */ {"text": "three"}]', "JSON file with comments (take them out)"),
        ('{\n  // of mine\n  "text": "one"\n}', "JSON file with comments (take them out)"),
        (
            json.dumps({"cells": [{"cell_type": "markdown", "source": ["# One"]}], "nbformat": 4}),
            "notebook (jupyter nbconvert --to markdown writes its text)",
        ),
    ],
)
def test_json_that_is_not_read_is_named(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "b.json").write_text(json.dumps([{"text": f"see https://a.org // {content}"}]))
    found, there = read(tmp_path)
    assert len(found) == 1
    assert there.skipped == {reason: 1}


def test_rows_in_pythons_notation_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{'text': 'one'}\n" + LINES.decode())
    assert read(tmp_path)[1].skipped == {"record in Python's notation, not JSON (json.dumps() writes JSON)": 1}


@pytest.mark.parametrize("text", ["x" * 600_000, "word " * 120_000, "word " * 120_000 + "\nmore\n"])
def test_a_line_longer_than_a_document_leaves_no_empty_one_before_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    found, there = read(tmp_path)
    assert "".join(found) == text
    assert there.skipped == {}


def test_json_that_is_written_as_a_text_in_json_is_what_it_holds(tmp_path: Path) -> None:
    rows = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, source = read(tmp_path / "a.jsonl")
    assert found == TEXTS
    assert [*source.notes] == ["JSON that is written as a text in JSON, read as what it holds"]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    assert read(tmp_path / "b.json")[0] == TEXTS


def test_a_text_in_json_that_only_begins_like_json_stays_a_text(tmp_path: Path) -> None:
    texts = ["[a note] on lamps", "{not JSON}", "[1, 2, 3]"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    assert read(tmp_path / "a.jsonl")[0] == texts


def test_record_separators_stand_before_lines_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join("\x1e" + json.dumps({"text": text}) + "\n" for text in TEXTS))
    assert read(tmp_path / "a.jsonl")[0] == TEXTS


def test_no_kind_of_column_vanishes_from_beside_a_question(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    answers = {
        "decimal": pyarrow.array([2, 3], pyarrow.decimal128(5, 2)),
        "date": pyarrow.array([0, 1], pyarrow.date32()),
        "time": pyarrow.array([0, 1], pyarrow.timestamp("us")),
        "nothing": pyarrow.array([None, None]),
        "map": pyarrow.array([[("a", "b")], []], pyarrow.map_(pyarrow.string(), pyarrow.string())),
    }
    said = {"decimal": ["2", "3"], "date": ["1970-01-01", "1970-01-02"]}
    said["time"] = ["1970-01-01 00:00:00", "1970-01-01 00:00:00.000001"]
    for name, answer in answers.items():
        parquet.write_table(
            pyarrow.table({"question": ["How much?", "When?"], "answer": answer}), tmp_path / "a.parquet"
        )
        source = open_source(str(tmp_path / "a.parquet"), text_field=None, split="train")
        if name in said:
            documents = list(source.documents())
            assert [document.messages[1]["content"] for document in documents if document.messages] == said[name]
        else:  # the question alone is never learned as a text
            with pytest.raises(DataError):
                list(source.documents())
