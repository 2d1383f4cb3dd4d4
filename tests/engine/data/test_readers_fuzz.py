"""Files of any bytes give documents or a DataError, nothing else, and soon."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data import csv_rows, readers
from engine.data.encoding import UnknownEncoding, Utf8Blocks
from engine.data.json_values import json_values
from engine.data.readers import READERS
from engine.data.sources import open_source
from engine.data.survey import survey
from engine.data.tally import Tally
from engine.errors import DataError

# Bytes that mean something to one of the readers come more often than others.
fragments = st.sampled_from(
    [
        *(bytes([byte]) for byte in b"\"'\\{}[],:;\t\n\r \0\xff\xc3"),
        *(
            b"\r\n",
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"text",
            b"null",
            b"5",
            b"1e999",
            b"NaN",
            b"\\ud800",
            b"PAR1",
            b"word " * 20,
        ),
        *(b'"text": "words and words"', b'{"text": "whole words"}\n', b'"a ""b"" c"'),
        *(b'"messages": ', b'{"role": "user", "content": "x"}'),
    ]
)
contents = st.lists(st.one_of(fragments, st.binary(max_size=8)), max_size=60).map(b"".join)

every_run = settings(
    max_examples=150, deadline=4000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a few hundred bytes reach."""
    for name, value in {
        "MAX_RECORD_BYTES": 64,
        "MAX_DOCUMENT_CHARACTERS": 40,
        "_MAX_TEXT_LINE_BYTES": 16,
        "_BLOCK_BYTES": 7,
        "_HEAD_BYTES": 32,
    }.items():
        monkeypatch.setattr(readers, name, value)
    monkeypatch.setattr(csv_rows, "MAX_RECORD_BYTES", 64)


def read(path: Path, text_field: str | None = None) -> list[str]:
    """The texts; none when there is a DataError."""
    try:
        documents = list(open_source(str(path), text_field=text_field, split="train").documents())
    except DataError:
        return []
    for document in documents:
        assert document.text
        assert not document.text.isspace()
        assert "\0" not in document.text
        document.text.encode()
        document.name.encode()
        for message in document.messages or ():
            assert set(message) == {"role", "content"}
    return [document.text for document in documents]


@pytest.mark.parametrize("suffix", [suffix for suffix in READERS if suffix not in (".md", ".ndjson", ".tsv")])
@given(content=contents, field=st.sampled_from([None, "text"]))
@every_run
def test_any_bytes_give_documents_or_a_data_error(
    tmp_path: Path, suffix: str, content: bytes, field: str | None
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    read(path, field)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv"])
@given(content=contents)
@every_run
def test_so_they_do_where_every_limit_is_reached(
    tmp_path: Path, small_limits: None, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    read(path)


@given(content=contents)
@every_run
def test_no_words_are_made_up(tmp_path: Path, small_limits: None, content: bytes) -> None:
    """Of a text file comes nothing that is not in it, in its order, whole lines left out at most."""
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    blocks = Utf8Blocks([content])  # a file may be in another encoding
    try:
        there = b"".join(blocks).decode("utf-8", "surrogateescape").replace("\ufeff", "")
    except UnknownEncoding:
        there = ""
    characters = iter(there.replace("\r\n", "\n").replace("\r", "\n"))
    for character in "".join(read(path)).replace("\n", "").replace("\ufeff", ""):
        assert character in characters, "a character that is not there, or not in this order"


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".parquet"])
@given(content=contents)
@settings(every_run, max_examples=40)
def test_a_look_at_any_bytes_is_a_survey_or_a_data_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    try:
        found = survey(str(tmp_path))
    except DataError:
        return
    assert found.documents is not None
    assert found.documents >= 1
    assert found.estimated_tokens is not None


json_trees = st.recursive(
    st.one_of(st.text(max_size=8), st.integers(), st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=12,
)


@given(st.lists(json_trees, max_size=6), st.integers(1, 9), st.sampled_from([None, 2]), st.booleans())
@settings(deadline=None)
def test_values_of_a_list_come_one_by_one_however_it_is_read(
    values: list[Any], block: int, indent: int | None, ascii_only: bool
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    tally = Tally()
    chunks = [data[place : place + block] for place in range(0, len(data), block)]
    found = [
        json.loads((value.data or b"").decode("utf-8", "surrogatepass")) for value in json_values(chunks, tally, 10**6)
    ]
    bare = [value for value in values if not isinstance(value, str | list | dict)]
    assert found == [value for value in values if isinstance(value, str | list | dict)]
    assert set(tally.skipped) <= {"JSON value that is neither text nor an object"}
    assert bool(tally.skipped) == bool(bare)


def _cut(data: bytes, generator: Any) -> bytes:
    return data[: generator.randrange(len(data))]


def _flip(data: bytes, generator: Any) -> bytes:
    place = generator.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << generator.randrange(8))]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [_cut, _flip])
@given(generator=st.randoms(use_true_random=False))
@settings(every_run, max_examples=100)
def test_damaged_parquet_gives_documents_or_a_data_error(
    tmp_path: Path, damage: Callable[[bytes, Any], bytes], generator: Any
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    rows = [{"id": number, "text": f"words of row {number}"} for number in range(20)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    path.write_bytes(damage(path.read_bytes(), generator))
    read(path)


# Beginnings of files of other kinds and of conversations, which are never continued as such.
REPEATED = (
    *(
        "\n",
        "\n\n",
        " ",
        "\n ",
        "\t",
        "\r\n",
        "-",
        "---\r\n",
        "a: b\r\n",
        "-a: b\n",
        "Aa: b\n",
        "Alice: hello\r\n",
        "From a b\n",
    ),
    *(
        "% a\r\n",
        "%\n\n",
        "<",
        "<a>",
        "<a> </b ",
        "</a",
        "1\n",
        "12:30:00,000\n",
        "Human: a\n\n",
        "Human:\n",
        "USER: a\n",
        "\n\nHuman",
    ),
    *(
        "### ",
        "[INST]",
        "<|im_start|>",
        "//",
        "/*\n",
        "{",
        "[",
        "{'",
        '{"a": ',
        '"',
        "',",
        '"cells"',
        '"name": "a", ',
        "<functioncall>",
    ),
    *("a,", "a;", "a|b\n", "|", "\\", "<s>", "\u2028", "{%", "\x00"),
)


@contextlib.contextmanager
def ends_within(seconds: int) -> Iterator[None]:
    """Fail instead of waiting for ever; the regular expressions of Python can be interrupted."""

    def too_long(*_: object) -> None:
        raise AssertionError(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Time that doubles with each line is seen with some lines; time that grows with their square needs many.
sizes = pytest.mark.parametrize("size", [2**10, pytest.param(64 * 2**10, marks=pytest.mark.slow)])


@sizes
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv"])
def test_what_is_repeated_without_end_is_read_in_bounded_time(tmp_path: Path, suffix: str, size: int) -> None:
    for begin in ("", "---\r\n", "Human: ", '{"name": "a", "arguments": \''):
        for number, unit in enumerate(REPEATED):
            path = tmp_path / f"{number}{suffix}"
            path.write_text(begin + unit * (size // len(unit)) + "x", encoding="utf-8", newline="")
            with ends_within(60):
                read(path)


@sizes
@pytest.mark.parametrize("key", ["text", "chat", "chosen", "prompt", "messages", "answers"])
def test_a_value_that_is_repeated_without_end_is_read_in_bounded_time(tmp_path: Path, key: str, size: int) -> None:
    for number, unit in enumerate(REPEATED):
        path = tmp_path / f"{number}.jsonl"
        value = unit * (size // len(unit)) + "x"
        turns = [{"role": "function_call", "content": value}, {"role": "assistant", "content": value}]
        record = {key: turns if key == "messages" else value, "question": value, "completion": value}
        path.write_text(f"{json.dumps(record)}\n" * 2)
        with ends_within(60):
            read(path)
