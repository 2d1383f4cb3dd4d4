from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.bitpack import id_code, pack_ids, unpack_ids


def survives(ids: np.ndarray, is_head: np.ndarray, vocab_size: int) -> None:
    code = id_code(ids.shape[1], vocab_size)
    packed = pack_ids(ids.astype(np.int32), is_head, code)
    assert packed.shape == (len(ids), code.num_bytes)
    found_ids, found_heads = unpack_ids(packed, code)
    np.testing.assert_array_equal(found_ids, ids)
    np.testing.assert_array_equal(found_heads, is_head)
    last = pack_ids(ids[-1:].astype(np.int32), is_head[-1:], code)
    np.testing.assert_array_equal(last, packed[-1:], "a record's bytes depend on its company")


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 2**18), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_ids_survive_packing_for_every_vocabulary(vocab_size, size, seed):
    random = np.random.default_rng(seed)
    ids = random.integers(0, vocab_size, (6, size))
    ids[0], ids[1] = vocab_size - 1, 0  # both ends
    ids[2] = vocab_size - 1 - np.arange(size).clip(max=vocab_size - 1)
    ids[3] = np.arange(size).clip(max=vocab_size - 1)
    survives(np.sort(ids, axis=1), random.random((6, size)) < 0.3, vocab_size)


@pytest.mark.parametrize("vocab_size", [2, 3, 4, 5, 31, 255])
def test_a_record_may_hold_the_whole_vocabulary(vocab_size):
    ids = np.tile(np.arange(vocab_size), (2, 1))
    survives(ids, np.array([[True], [False]]).repeat(vocab_size, 1), vocab_size)


@pytest.mark.parametrize("vocab_size", [2**18 + 1, 2**24, 2**25 - 1, 2**26, 2**30])
def test_vocabularies_larger_than_any_today_survive_too(vocab_size):
    ids = np.sort(np.random.default_rng(0).integers(0, vocab_size, (50, 255)), axis=1)
    survives(ids, ids % 3 == 0, vocab_size)


def test_no_records_are_packed_to_nothing():
    survives(np.empty((0, 12), np.int32), np.empty((0, 12), bool), 1000)


@pytest.mark.parametrize(
    ("size", "vocab_size", "num_bytes"), [(12, 32_000, 22), (12, 50_304, 23), (12, 151_646, 25), (8, 151_646, 18)]
)
def test_the_code_takes_as_little_as_it_says(size, vocab_size, num_bytes):
    code = id_code(size, vocab_size)
    assert code.num_bytes == num_bytes
    plain = math.ceil(size * math.ceil(math.log2(vocab_size)) / 8) + 1  # and a byte that counts the heads
    assert num_bytes < plain
    ordered = math.log2(math.comb(vocab_size, size)) + math.log2(2) * size  # as few bits as there can be, and the marks
    assert num_bytes * 8 < ordered + 1.0 * size + 8


def test_bytes_that_are_no_record_are_refused():
    code = id_code(3, 100)
    with pytest.raises(ValueError, match="reshape"):
        unpack_ids(np.zeros((2, code.num_bytes), np.uint8), code)
