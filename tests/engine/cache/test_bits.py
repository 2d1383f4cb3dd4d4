from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.bits import pack_set, read_bits, set_bytes, unpack_set, write_bits


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 9)), max_size=60))
def test_numbers_of_any_width_survive_with_gaps_between_them(numbers):
    widths = np.array([width for _, width, _ in numbers], np.int64)
    values = np.array([value & ((1 << width) - 1) for value, width, _ in numbers], np.int64)
    gaps = np.array([gap for *_, gap in numbers], np.int64)
    starts = (widths + gaps).cumsum() - widths
    written = write_bits(values, widths, starts)
    assert len(written) == -(-int((starts + widths).max(initial=0)) // 8)
    np.testing.assert_array_equal(read_bits(written, widths, starts), values)
    assert int(np.unpackbits(written).sum()) == sum(int(value).bit_count() for value in values), "gaps are 0"


@pytest.mark.parametrize("start", [8, -1, 2**40])
def test_what_lies_outside_of_the_data_is_refused(start):
    with pytest.raises(ValueError, match="outside"):
        read_bits(np.zeros(2, np.uint8), np.array([9]), np.array([start]))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2**30), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_sets_survive_packing(below, size, seed):
    size = min(size, below)
    random = np.random.default_rng(seed)
    values = (
        np.sort(random.choice(below, size, replace=False))
        if below < 10**5
        else np.unique(np.append(random.integers(0, below, size), below - 1))
    )
    packed = pack_set(values, below)
    assert len(packed) == set_bytes(len(values), below)
    np.testing.assert_array_equal(unpack_set(packed, len(values), below), values)


@pytest.mark.parametrize(("size", "below"), [(8, 50_000), (1024, 50_000), (2048, 150_000)])
def test_a_set_takes_half_a_bit_a_number_more_than_it_must(size, below):
    fewest = math.log2(math.comb(below, size))
    assert fewest <= 8 * set_bytes(size, below) < fewest + 0.7 * size + 16


def test_bytes_that_are_no_set_are_refused():
    with pytest.raises(ValueError, match="0 numbers in a set of 4"):
        unpack_set(np.zeros(set_bytes(4, 100), np.uint8), 4, 100)
    with pytest.raises(ValueError, match="a truncated set"):
        unpack_set(pack_set(np.arange(4), 100)[:-1], 4, 100)
