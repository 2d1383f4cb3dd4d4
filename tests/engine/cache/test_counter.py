from __future__ import annotations

import numpy as np
import pytest

from engine.cache.counter import row_key, uniforms


def test_a_number_depends_on_the_counter_alone_not_on_its_company():
    keys = np.array([7, 7, 9, 2**64 - 1], np.uint64)
    places = np.array([0, 1, 0, 5], np.int64)
    whole = uniforms(3, keys, places, 0)
    one_by_one = [float(uniforms(3, keys[i : i + 1], places[i : i + 1], 0)[0]) for i in range(4)]
    assert whole.tolist() == one_by_one
    backwards = uniforms(3, keys[::-1], places[::-1], 0)
    assert whole.tolist() == backwards.tolist()[::-1]
    mixed = uniforms(3, keys, places, np.array([0, 1, 0, 1]))
    assert mixed.tolist() == np.where([1, 0, 1, 0], whole, uniforms(3, keys, places, 1)).tolist()


def test_seed_row_position_and_stream_each_make_another_number():
    keys, places = np.array([7, 7, 9], np.uint64), np.array([0, 1, 0], np.int64)
    found = [uniforms(seed, keys, places, stream).tolist() for seed in (0, 1, -1, 2**63) for stream in (0, 1, 2)]
    assert len({number for numbers in found for number in numbers}) == 36


def test_a_number_never_changes():
    # Caches made by earlier versions would be mixed with other draws.
    assert uniforms(42, np.array([123456789], np.uint64), np.array([17]), 3).tolist() == [0.2059574189041683]
    assert row_key(bytes(range(16))) == 0x0706050403020100


@pytest.mark.parametrize("vary", ["rows", "positions", "streams", "seeds"])
def test_numbers_are_uniform_and_independent_whichever_part_counts(vary):
    num = 100_000
    count, still = np.arange(num), np.zeros(num, np.int64)
    if vary == "seeds":
        count, still = count[:5000], still[:5000]
        found = np.concatenate([uniforms(int(seed), still[:1].astype(np.uint64), still[:1], 0) for seed in count])
    else:
        rows, positions, streams = (count if vary == name else still for name in ("rows", "positions", "streams"))
        found = uniforms(0, rows.astype(np.uint64), positions, streams)
    expected = len(found) / 50
    counts = np.histogram(found, 50, (0, 1))[0]
    assert ((counts - expected) ** 2 / expected).sum() < 95, "chi-square with 49 degrees of freedom, p about 0.0001"
    assert found.min() >= 0.0
    assert found.max() < 1.0
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(found[lag:], found[:-lag])[0, 1]) < 5 / np.sqrt(len(found))
    bits = (found * 2**20).astype(np.int64)
    for place in range(20):
        assert abs(((bits >> place) & 1).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(found))
