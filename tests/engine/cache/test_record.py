from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache import record as record_module
from engine.cache.record import Places, Records, decode, encode
from tests.engine.cache.some_records import random_records, some_places


def record_of(probs: list[float], num_head: int, num: int, vocab_size: int = 100) -> tuple[Records, np.ndarray]:
    """The same record ``num`` times: exact heads, and a tail that shares the rest; and its weights."""
    size, heads = len(probs), np.array(probs[:num_head])
    rest = max(0.0, 1.0 - heads.sum()) if num_head < size else 0.0
    log_probs = np.full(size, -np.inf, np.float32)
    log_probs[:num_head] = np.log(heads)
    records = Records(
        ids=np.tile(np.arange(size, dtype=np.int32), (num, 1)),
        num_head=np.full(num, num_head, np.uint8),
        head_log_probs=np.tile(log_probs, (num, 1)),
        tail_mass=np.full(num, rest, np.float32),
        label_log_prob=np.zeros(num, np.float32),
        entropy=np.zeros(num, np.float32),
    )
    return records, np.append(heads, np.full(size - num_head, rest / max(1, size - num_head)))


def through_bytes(records: Records, vocab_size: int, seed: int = 0) -> Records:
    """Encode and decode records of one row."""
    places = some_places(len(records), seed)
    return decode([encode(records, vocab_size, places, [len(records)])], records.ids.shape[1])


def weights_by_id(records: Records) -> np.ndarray:
    """Weights of ids 0 to k - 1, which every record has, as float64 [N, k]."""
    found = np.zeros(records.ids.shape)
    np.put_along_axis(found, records.ids, records.weights().astype(np.float64), axis=1)
    return found


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([20, 21, 300, 70_000]))
def test_a_record_survives_its_bytes(size, seed, top1, vocab_size):
    records = random_records(50, size, vocab_size, seed, top1)
    again = through_bytes(records, vocab_size, seed)
    for each in (records, again):
        np.testing.assert_allclose(each.weights().sum(1), 1.0, atol=3e-6)
        assert (each.weights() >= 0).all()
    np.testing.assert_array_equal(again.num_head, records.num_head)
    for name in ("ids", "head_log_probs"):  # heads of nearly the same log-prob may change places
        assert getattr(again, name).dtype == getattr(records, name).dtype
    for before, after, heads in zip(records.ids.tolist(), again.ids.tolist(), records.num_head.tolist(), strict=True):
        assert set(before[:heads]) == set(after[:heads])
        assert before[heads:] == after[heads:]
    assert (again.head_log_probs[:, 1:] <= again.head_log_probs[:, :-1]).all(), "heads fall"
    assert (again.top1_id is not None) == top1
    if top1:
        np.testing.assert_array_equal(again.top1_id, records.top1_id)
        np.testing.assert_allclose(again.label_log_prob, records.label_log_prob, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(again.entropy, records.entropy, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(again.top1_log_prob, records.top1_log_prob, rtol=1e-3, atol=1e-6)
    else:
        # One step of a byte at x of [0, L] is about 2 sqrt(x L) / 255.
        assert (abs(again.label_log_prob - records.label_log_prob) <= 2 * np.sqrt(64 * 30) / 255).all()
        assert (abs(again.entropy - records.entropy) <= 2 * np.sqrt(16 * 16) / 255).all()


def test_heads_keep_their_own_log_probs():
    records = random_records(200, 8, 1000, seed=5)
    again = through_bytes(records, 1000)
    for place in range(200):
        heads = int(records.num_head[place])
        before = dict(zip(records.ids[place, :heads].tolist(), records.head_log_probs[place].tolist(), strict=False))
        after = dict(zip(again.ids[place, :heads].tolist(), again.head_log_probs[place].tolist(), strict=False))
        for token, log_prob in before.items():
            assert abs(after[token] - log_prob) <= 2 * np.sqrt(16 * -log_prob) / 255 + 16 / 255**2


@pytest.mark.parametrize(
    ("probs", "num_head"),
    [
        ([0.6, 0.21, 0.0513, 0.003, 1e-5, 0], 5),
        ([0.6, 0.21, 0.0513, 0, 0, 0], 3),
        ([0.31, 0.3, 0.29, 0.04, 0, 0], 4),
        ([0.97, 0.02, 0.003, 0, 0, 0], 3),
        ([0.2] * 5, 5),
        ([0.999, 0], 1),
        ([0, 0, 0], 0),
    ],
)
def test_rounding_moves_no_weight_on_average(probs, num_head):
    num = 100_000
    records, expected = record_of(probs, num_head, num)
    weights = weights_by_id(through_bytes(records, 100))
    mean, error = weights.mean(0), weights.std(0) / np.sqrt(num)
    bias = np.abs(mean - expected)
    # The rest comes from scaling the heads to 1 - tail mass: a few hundredths of a per cent of a head.
    assert (bias < 5 * error + 5e-4 * expected + 1e-7).all(), bias / expected


def test_rounding_to_the_nearest_would_move_weights_ten_times_as_far(monkeypatch):
    def bias() -> float:
        records, expected = record_of([0.6, 0.21, 0.0513, 0.003, 0], 4, 50_000)
        mean = weights_by_id(through_bytes(records, 100)).mean(0)
        return float((np.abs(mean - expected) / expected).max())

    by_chance = bias()
    monkeypatch.setattr(record_module, "uniforms", lambda seed, keys, *_: np.full(len(keys), 0.5))
    assert bias() > 10 * by_chance


def test_each_number_is_rounded_by_a_chance_of_its_own():
    num = 20_000
    records, _ = record_of([0.41, 0.23, 0.12, 0.07, 0, 0], 4, num)
    records = dataclasses.replace(
        records, label_log_prob=np.full(num, -3.3, np.float32), entropy=np.full(num, 2.2, np.float32)
    )
    encoded = encode(records, 100, some_places(num), [num])
    columns = [*encoded.head_log_probs.reshape(num, 4).T, encoded.tail_mass, encoded.label_log_prob, encoded.entropy]
    assert all(column.max() == column.min() + 1 for column in columns), "rounded to the one or the other"
    between = np.corrcoef(np.array(columns, float)) - np.eye(7)
    assert abs(between).max() < 5 / np.sqrt(num)


def test_entropy_and_label_are_right_on_average():
    num = 50_000
    records = dataclasses.replace(
        record_of([0.5, 0], 1, num)[0],
        label_log_prob=np.full(num, -3.3, np.float32),
        entropy=np.full(num, 2.2, np.float32),
    )
    again = through_bytes(records, 100)
    assert again.label_log_prob.mean(dtype=np.float64) == pytest.approx(-3.3, abs=5 * 0.06 / np.sqrt(num))
    assert again.entropy.mean(dtype=np.float64) == pytest.approx(2.2, abs=5 * 0.03 / np.sqrt(num))
    assert again.label_log_prob.std() < 0.06
    assert again.entropy.std() < 0.03


def test_both_ends_are_exact():
    records, _ = record_of([1.0, 0.0], 1, 3)
    ends = np.array([0.0, 0.0, -64.0], np.float32)
    records = dataclasses.replace(
        records, tail_mass=np.array([0, 1, 0], np.float32), label_log_prob=ends, entropy=np.array([0, 16, 16], "f4")
    )
    again = through_bytes(records, 100)
    for name in ("head_log_probs", "tail_mass", "label_log_prob", "entropy"):
        np.testing.assert_array_equal(getattr(again, name), getattr(records, name))


def test_what_no_byte_can_say_becomes_the_nearest_that_one_can():
    records, _ = record_of([1.0, 0.0], 1, 2)
    records = dataclasses.replace(
        records,
        head_log_probs=np.array([[-40, -np.inf], [1e-7, -np.inf]], np.float32),
        tail_mass=np.array([1.0000001, -1e-9], np.float32),
        label_log_prob=np.array([-np.inf, 1e-7], np.float32),
    )
    again = through_bytes(records, 100)
    assert again.head_log_probs[:, 0].tolist() == [-16.0, 0.0]
    assert again.tail_mass.tolist() == [1.0, 0.0]
    assert again.label_log_prob.tolist() == [-64.0, 0.0]
    assert np.isfinite(again.weights()).all()


def test_a_record_of_one_id_is_certain():
    records, _ = record_of([0.0], 0, 4)
    np.testing.assert_array_equal(through_bytes(records, 100).weights(), np.ones((4, 1)))
    records, _ = record_of([0.3], 1, 4)
    np.testing.assert_array_equal(through_bytes(records, 100).weights(), np.ones((4, 1)))


def test_a_record_of_the_whole_vocabulary_has_no_tail():
    records, expected = record_of([0.5, 0.3, 0.2], 3, 20_000, vocab_size=3)
    np.testing.assert_allclose(records.weights()[0], expected, rtol=1e-6)
    again = weights_by_id(through_bytes(records, 3))
    np.testing.assert_allclose(again.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(again.mean(0), expected, rtol=1e-3, atol=1e-6)


def test_what_a_record_says_does_not_depend_on_its_company():
    records = random_records(40, 6, 300, seed=3)
    places = Places(0, np.repeat(np.array([5, 6], np.uint64), 20), np.tile(np.arange(20), 2))
    whole = decode([encode(records, 300, places, [20, 20])], 6)
    second_places = Places(0, places.row_keys[20:], places.positions[20:])
    second = decode([encode(records.take(slice(20, None)), 300, second_places, [20])], 6)
    for name, values in vars(second).items():
        np.testing.assert_array_equal(values, getattr(whole.take(slice(20, None)), name))


def test_parts_of_all_kinds_are_decoded_one_behind_the_other():
    kinds = [(5, 300, False, 1), (0, 300, False, 2), (7, 300, False, 3), (4, 300, True, 4), (6, 300, False, 5)]
    parts, expected = [], []
    for num, vocab_size, top1, seed in kinds:
        records = random_records(num, 6, vocab_size, seed=seed, top1=top1)
        if seed == 5:
            ids = np.argsort(records.ids, axis=1)  # 6 ids that all records have
            records = dataclasses.replace(records, ids=ids.astype(np.int32))
        parts.append(encode(records, vocab_size, some_places(num), [num // 2, 0, num - num // 2]))
        expected.append(decode(parts[-1:], 6).without_top1())
    assert len({part.decodes_with for part in parts}) > 2, "this shows nothing"
    found = decode(parts, 6)
    for name, values in vars(Records.concatenate(expected)).items():
        np.testing.assert_array_equal(getattr(found, name), values)
    assert len(decode([], 6)) == 0


def test_records_are_joined_and_cut():
    first, second = random_records(5, 4, 50, seed=1, top1=True), random_records(3, 4, 50, seed=2)
    joined = Records.concatenate([first, second])
    assert len(joined) == 8
    assert joined.top1_id is None, "not every record has it"
    np.testing.assert_array_equal(joined.take(slice(5, None)).ids, second.ids)
    assert len(Records.concatenate([Records.none(4), second])) == 3
