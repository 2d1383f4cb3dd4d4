from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.id_layout import IdLayout, fitting_layout, flag_bits, growing_widths, uniform_widths
from engine.cache.id_pack import pack_ids, unpack_ids


def survives(ids: np.ndarray, is_head: np.ndarray, layout: IdLayout, row_records: list[int]) -> None:
    counts = np.array(row_records, np.int64)
    in_order = np.sort(layout.places(ids), axis=1)
    packed, row_bytes = pack_ids(in_order, is_head, layout, counts)
    assert len(packed) == row_bytes.sum()
    found, heads = unpack_ids(packed, layout, counts, row_bytes, ids.shape[1])
    np.testing.assert_array_equal(found, in_order)
    np.testing.assert_array_equal(heads, is_head)
    bytes_to, records_to = np.append(0, row_bytes.cumsum()), np.append(0, counts.cumsum())
    for row, count in enumerate(row_records):  # each row by itself
        own = packed[bytes_to[row] : bytes_to[row + 1]]
        found, _ = unpack_ids(own, layout, counts[row : row + 1], row_bytes[row : row + 1], ids.shape[1])
        np.testing.assert_array_equal(found, in_order[records_to[row] : records_to[row] + count])


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 20_000),
    st.integers(1, 40),
    st.lists(st.integers(0, 5), max_size=6),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["fitting", "uniform", "growing"]),
)
def test_ids_survive_packing_for_every_vocabulary(vocab_size, size, row_records, seed, kind):
    size = min(size, vocab_size)
    random = np.random.default_rng(seed)
    num = sum(row_records)
    ids = np.stack([random.choice(vocab_size, size, replace=False) for _ in range(num)] or [np.zeros(size, int)])[:num]
    if num > 1:  # both ends
        ids[0], ids[1] = np.arange(size), vocab_size - 1 - np.arange(size)
    widths = uniform_widths(size, vocab_size) if kind == "uniform" else growing_widths(3, 1, vocab_size)
    layout = (
        IdLayout(vocab_size, widths, np.empty(0, np.int64)) if kind != "fitting" else fitting_layout(ids, vocab_size)
    )
    survives(ids, random.random((num, size)) < 0.3, layout, row_records)


@pytest.mark.parametrize("vocab_size", [2**18 + 1, 2**24, pytest.param(2**26, marks=pytest.mark.slow)])
def test_vocabularies_larger_than_any_today_survive_too(vocab_size):
    ids = np.random.default_rng(0).integers(0, vocab_size, (50, 255))
    survives(ids, ids % 3 == 0, fitting_layout(ids, vocab_size), [20, 30])


@pytest.mark.parametrize("vocab_size", [2, 3, 4, 5, 31, 255])
def test_a_record_may_hold_the_whole_vocabulary(vocab_size):
    ids = np.tile(np.arange(vocab_size), (2, 1))
    survives(ids, np.array([[True], [False]]).repeat(vocab_size, 1), fitting_layout(ids, vocab_size), [2])


@pytest.mark.parametrize(
    ("size", "vocab_size", "num_bytes"), [(12, 32_000, 22), (12, 50_304, 23), (12, 151_646, 25), (8, 151_646, 18)]
)
def test_any_ids_take_no_more_than_as_a_set(size, vocab_size, num_bytes):
    ids = np.sort(np.random.default_rng(0).integers(0, vocab_size, (512, size)), axis=1)
    layout = fitting_layout(ids, vocab_size)
    packed, _ = pack_ids(np.sort(layout.places(ids), axis=1), ids < 0, layout, np.array([512]))
    assert len(packed) / 512 < num_bytes
    assert flag_bits(size, len(layout.widths)) < 8 * num_bytes


def test_bytes_that_are_no_records_are_refused():
    layout = IdLayout(100, uniform_widths(3, 100), np.empty(0, np.int64))
    ids = np.array([[1, 50, 99]] * 4)
    packed, row_bytes = pack_ids(ids, ids < 0, layout, np.array([4]))
    with pytest.raises(ValueError, match="reshape"):
        unpack_ids(packed * 0, layout, np.array([4]), row_bytes, 3)
    with pytest.raises(ValueError, match="outside"):
        unpack_ids(packed[:-1], layout, np.array([4]), row_bytes, 3)
