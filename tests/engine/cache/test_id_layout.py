from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.id_layout import (
    IdLayout,
    fitting_layout,
    flag_bits,
    growing_widths,
    layout_from_bytes,
    uniform_widths,
)


def like_words(num: int, size: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    """Ids as text has them: the n-th most frequent one in proportion to 1/n, and which that is by chance."""
    random = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, vocab_size + 1)
    names = random.permutation(vocab_size)
    drawn = -np.log(random.random((num, vocab_size))) / weights  # the smallest k: without replacement
    return names[np.argpartition(drawn, size, axis=1)[:, :size]]


def bits_of(layout: IdLayout, ids: np.ndarray) -> float:
    """For each record, with its share of what the shard says of the layout."""
    bucket = np.searchsorted(layout.firsts, layout.places(ids), side="right") - 1
    places = layout.widths_of[bucket].sum() / len(ids)
    fixed = flag_bits(ids.shape[1], len(layout.widths)) - ids.shape[1]  # without the marks of heads
    return float(fixed + places + 8 * len(layout.to_bytes()) / len(ids))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 3_000), st.integers(1, 30), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_the_order_is_one_of_all_ids(vocab_size, size, num, seed):
    random = np.random.default_rng(seed)
    ids = (vocab_size * random.random((num, size)) ** random.integers(1, 8)).astype(np.int32)
    layout = fitting_layout(ids, vocab_size)
    places = layout.places(np.arange(vocab_size))
    assert sorted(places.tolist()) == list(range(vocab_size))
    np.testing.assert_array_equal(layout.ids(places), np.arange(vocab_size))
    again = layout_from_bytes(layout.to_bytes().tobytes())
    assert (again.vocab_size, again.widths) == (vocab_size, layout.widths)
    np.testing.assert_array_equal(again.common, layout.common)
    assert sum(2**width for width in layout.widths) >= vocab_size


def test_frequent_ids_stand_in_front():
    random = np.random.default_rng(0)
    often = random.permutation(3_000)[:64]
    ids = np.concatenate([random.choice(often, (2_000, 8)), random.integers(0, 3_000, (10, 8))])
    layout = fitting_layout(ids, 3_000)
    common = layout.ids(np.arange(len(layout.common))).tolist()
    assert len(common) < 300
    assert len(set(common) & set(often.tolist())) >= 60


def test_words_take_fewer_bits_than_ids_of_which_any_could_be_any():
    ids = like_words(1_000, 12, 8_000)
    found = fitting_layout(ids, 8_000)
    uniform = IdLayout(8_000, uniform_widths(12, 8_000), np.empty(0, np.int64))
    assert bits_of(found, ids) < 0.85 * bits_of(uniform, ids)
    unordered = IdLayout(8_000, found.widths, np.empty(0, np.int64))
    assert bits_of(found, ids) < 0.85 * bits_of(unordered, ids)


def test_ids_of_which_any_could_be_any_take_what_a_set_takes():
    ids = np.random.default_rng(0).integers(0, 50_000, (1_000, 12))
    layout = fitting_layout(ids, 50_000)
    assert layout.widths == uniform_widths(12, 50_000)
    assert not len(layout.common)
    assert flag_bits(12, len(layout.widths)) + 12 * layout.widths[0] <= 8 * 23


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 255, 50_304, 2**18, 2**26])
@pytest.mark.parametrize("size", [1, 12, 255])
def test_buckets_hold_every_vocabulary(vocab_size, size):
    for widths in (
        uniform_widths(size, vocab_size),
        growing_widths(3, 1, vocab_size),
        growing_widths(1, 2, vocab_size),
    ):
        sizes = [2**width for width in widths]
        assert sum(sizes) >= vocab_size > sum(sizes[:-1])


def test_no_ids_have_a_layout_too():
    layout = fitting_layout(np.empty((0, 12), np.int32), 1_000)
    assert layout_from_bytes(layout.to_bytes().tobytes()).vocab_size == 1_000


def test_a_place_beyond_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="not in the vocabulary"):
        fitting_layout(np.array([[1]]), 10).ids(np.array([10]))


@pytest.mark.parametrize("cut", [0, 5, 11, 12, 20, -1])
def test_bytes_that_are_no_layout_are_refused(cut):
    layout = fitting_layout(like_words(300, 12, 1_000), 1_000)
    assert len(layout.common)
    with pytest.raises(ValueError, match=r".+"):
        layout_from_bytes(layout.to_bytes().tobytes()[:cut])


def test_a_width_that_cannot_be_is_refused():
    data = bytearray(fitting_layout(np.array([[1, 2]]), 10).to_bytes().tobytes())
    data[12] = 200
    with pytest.raises(ValueError, match="widths"):
        layout_from_bytes(bytes(data))
