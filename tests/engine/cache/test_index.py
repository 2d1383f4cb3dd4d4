from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.index import RowIndex
from tests.engine.cache.some_records import row


def hashes_of(rows: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16)


def test_rows_are_found_wherever_they_are():
    index = RowIndex()
    index.add([(0, hashes_of([row(1), row(2)]), False), (3, hashes_of([row(3)]), True)])
    index.add([(4, hashes_of([row(4), row(5), row(6)]), False)])
    shards, places = index.find([row(6), row(1), row(99), row(3), row(2)])
    assert shards.tolist() == [4, 0, -1, 3, 0]
    assert places.tolist() == [2, 0, 0, 0, 1]
    assert index.has_top1(shards).tolist() == [False, False, False, True, False]


def test_an_empty_index_finds_nothing():
    index = RowIndex()
    index.add([])
    index.add([(0, hashes_of([]), False)])
    assert index.find([])[0].tolist() == []
    assert index.find([row(1)])[0].tolist() == [-1]


def test_rows_with_the_same_first_half_are_told_apart():
    twins = [bytes(8) + bytes([number]) * 8 for number in range(5)]
    index = RowIndex()
    index.add([(7, hashes_of(twins[:4]), False)])
    shards, places = index.find(twins)
    assert shards.tolist() == [7, 7, 7, 7, -1]
    assert places.tolist() == [0, 1, 2, 3, 0]
    largest = b"\xff" * 16
    index.add([(8, hashes_of([largest]), False)])
    assert index.find([largest, b"\xff" * 8 + bytes(8)])[0].tolist() == [8, -1]


def test_of_two_the_one_with_the_first_choice_is_found_in_whatever_order_they_came():
    for with_top1 in (1, 2):
        index = RowIndex()
        for shard in (1, 2):
            index.add([(shard, hashes_of([row(0), row(shard)]), shard == with_top1)])
        assert index.find([row(0)])[0].tolist() == [with_top1]
        index.drop(with_top1)
        assert index.find([row(0)])[0].tolist() == [3 - with_top1]
        assert index.find([row(with_top1)])[0].tolist() == [-1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), max_size=8), max_size=8), st.lists(st.integers(0, 80), max_size=20))
def test_it_agrees_with_a_dictionary(shards, asked):
    index, plain = RowIndex(), {}
    for number, rows in enumerate(shards):
        fresh = [value for value in dict.fromkeys(rows) if value not in plain]
        index.add([(number, hashes_of([row(value) for value in fresh]), False)])
        plain |= {value: (number, place) for place, value in enumerate(fresh)}
    found = index.find([row(value) for value in asked])
    assert list(zip(*(part.tolist() for part in found), strict=True)) == [plain.get(value, (-1, 0)) for value in asked]
    assert len(index) == len(plain)


def test_a_row_costs_24_bytes_however_many_there_are():
    hashes = np.random.default_rng(0).integers(0, 256, (200_000, 16), dtype=np.uint8)
    tracemalloc.start()
    try:
        index = RowIndex()
        for number in range(4):
            index.add([(number, hashes[number * 50_000 : (number + 1) * 50_000], False)])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == 200_000
    assert held < 200_000 * 25
