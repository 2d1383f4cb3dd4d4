from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.journal import ShardEntry, Writer, append_entry, read_journal, rewrite_journal


def entry(number: int) -> ShardEntry:
    return ShardEntry(Writer().shard(number), 3, 40, 5000, "a" * 64, False)


def test_what_was_appended_is_read_in_order(tmp_path):
    for number in (0, 1, 7):
        append_entry(tmp_path, entry(number))
    found = read_journal(tmp_path)
    assert found.entries == [entry(0), entry(1), entry(7)]
    assert [each.number for each in found.entries] == [0, 1, 7]
    assert found.is_clean
    assert read_journal(tmp_path / "none").entries == []


def test_a_journal_cut_anywhere_keeps_every_line_that_is_whole(tmp_path):
    lines = [entry(number).line().encode() for number in range(3)]
    whole = b"".join(lines)
    for end in range(len(whole) + 1):
        (tmp_path / "journal.jsonl").write_bytes(whole[:end])
        found = read_journal(tmp_path)
        assert found.entries == [entry(number) for number in range(whole[:end].count(b"\n"))]
        assert found.damaged_lines == 0
        assert found.is_clean == (end in (0, len(lines[0]), 2 * len(lines[0]), len(whole)))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc/shard-00000.h5"},
        {"name": "/shard-00000.h5"},
        {"name": 3},
        {"rows": -1},
        {"rows": True},
        {"bytes": 1.5},
        {"sha256": None},
        {"has_top1": "no"},
        {"more": 1},
    ],
)
def test_a_line_that_cannot_be_is_damage(tmp_path, change):
    line = json.dumps(json.loads(entry(0).line()) | change) + "\n"
    (tmp_path / "journal.jsonl").write_text(line + entry(1).line())
    found = read_journal(tmp_path)
    assert found.entries == [entry(1)]
    assert found.damaged_lines == 1
    assert not found.is_clean


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_make_a_journal_of_whole_entries(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    (folder / "journal.jsonl").write_bytes(entry(0).line().encode() + data + b"\n" + entry(1).line().encode())
    found = read_journal(folder)
    assert entry(0) in found.entries
    assert entry(1) in found.entries
    rewrite_journal(folder, found.entries)
    again = read_journal(folder)
    assert again.is_clean
    assert again.entries == found.entries


def test_deep_nesting_is_damage_and_not_the_end(tmp_path):
    (tmp_path / "journal.jsonl").write_text("[" * 200_000 + "\n" + entry(1).line())
    assert read_journal(tmp_path).entries == [entry(1)]
