from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from engine.cache.check import damaged_shards, leftovers, pieces, record_problem
from engine.cache.store import CacheStore
from tests.engine.cache.some_records import random_records
from tests.engine.cache.test_store import fill, flip


def test_records_made_well_have_no_problem():
    for size in (1, 6):
        assert record_problem(random_records(50, size, 300, top1=True), 300) is None
    assert record_problem(random_records(0, 6, 300), 300) is None


@pytest.mark.parametrize(
    ("field", "change", "said"),
    [
        ("ids", lambda ids: ids + 300, "not below 300"),
        ("ids", lambda ids: ids - 300, "not below 300"),
        ("ids", lambda ids: ids * 0, "twice"),
        ("num_head", lambda heads: heads + np.uint8(7), "more heads than ids"),
        ("tail_mass", lambda mass: mass + np.float32(np.nan), "do not sum to 1"),
        ("head_log_probs", lambda log_probs: log_probs - np.float32(np.inf), "do not sum to 1"),
        ("entropy", lambda entropy: -entropy - 1, "entropy"),
        ("entropy", lambda entropy: entropy * np.float32(np.nan), "entropy"),
        ("label_log_prob", lambda label: 1 - label, "above 1"),
        ("top1_id", lambda top1: top1 + 300, "first choice"),
    ],
)
def test_each_thing_that_cannot_be_is_named(field, change, said):
    records = random_records(50, 6, 300, top1=True)
    assert said in record_problem(dataclasses.replace(records, **{field: change(getattr(records, field))}), 300)


def test_the_pieces_of_a_shard_are_all_of_it_and_no_more_than_asked(tmp_path):
    fill(tmp_path)
    with CacheStore.look(tmp_path) as store:
        for entry in store.entries:
            for most in (1, 4, 1000):
                found = list(pieces(store, entry, most))
                assert [row for first, last in found for row in range(first, last)] == list(range(entry.rows))
                sizes = [len(store.peek(entry, first, last)) for first, last in found]
                assert sum(sizes) == entry.tokens
                assert max(sizes) < most + 7, "a row has up to 6 records"


def test_damage_is_found_and_progress_is_told(tmp_path):
    fill(tmp_path)
    flip(tmp_path / "shard-00002.h5", 0.999)
    told = []
    with CacheStore.look(tmp_path) as store:
        [(entry, wrong)] = damaged_shards(store, lambda done, total: told.append((done, total)))
        assert entry.name == "shard-00002.h5"
        assert "checksum" in wrong
        assert told[-1] == (store.num_bytes, store.num_bytes)
        assert len(told) == 3


def test_leftovers_are_what_no_reader_reads(tmp_path):
    fill(tmp_path)
    for name in ("a.tmp", "shard-00000.h5.bad", "shard-00009.h5", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    with CacheStore.look(tmp_path) as store:
        assert leftovers(store) == [Path(tmp_path / name) for name in ("a.tmp", "shard-00000.h5.bad", "shard-00009.h5")]


def test_what_the_journal_names_or_may_have_named_is_not_left_over(tmp_path):
    fill(tmp_path)
    (tmp_path / "shard-00001.h5").write_bytes(b"damaged")
    with CacheStore.look(tmp_path) as store:
        assert store.num_shards == 2
        assert leftovers(store) == []
    (tmp_path / "shard-00009.h5").write_bytes(b"")
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"rows"', b'"r0ws"', 1))
    with CacheStore.look(tmp_path) as store:
        assert leftovers(store) == []
