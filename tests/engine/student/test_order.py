from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.student.order import Order


@given(
    num_rows=st.integers(1, 60),
    micro_batch=st.integers(1, 9),
    accumulation=st.integers(1, 5),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**63 - 1),
)
def test_each_epoch_reads_every_row_once(
    num_rows: int, micro_batch: int, accumulation: int, epochs: int, seed: int
) -> None:
    order = Order.plan(
        num_rows=num_rows, micro_batch=micro_batch, gradient_accumulation=accumulation, seed=seed, epochs=epochs
    )
    rows = [row for step in range(order.total_steps) for group in order.micro_batches(step) for row in group]
    for epoch in range(epochs):
        assert sorted(rows[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    assert len(rows) == epochs * num_rows


def test_steps_are_as_many_as_asked_for_however_often_the_data_is_read() -> None:
    order = Order.plan(num_rows=5, micro_batch=2, gradient_accumulation=2, seed=0, steps=7)
    assert order.total_steps == 7
    assert all(sum(len(group) for group in order.micro_batches(step)) == 4 for step in range(7))
    counts = Counter(row for step in range(7) for group in order.micro_batches(step) for row in group)
    assert set(counts.values()) <= {5, 6}


@pytest.mark.parametrize(("micro_batch", "accumulation"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_smaller_bites_read_the_same_rows_in_each_step(micro_batch: int, accumulation: int) -> None:
    whole = Order(100, 8, 1, 300, seed=4)
    cut = Order(100, micro_batch, accumulation, 300, seed=4)
    for step in (0, 11, 37):
        assert [row for group in cut.micro_batches(step) for row in group] == whole.micro_batches(step)[0]


def test_seed_and_epoch_change_the_order() -> None:
    def rows(seed: int, step: int) -> list[int]:
        return Order(50, 50, 1, 100, seed).micro_batches(step)[0]

    assert rows(0, 0) != rows(1, 0)
    assert rows(0, 0) != rows(0, 1)
    assert rows(0, 0) != list(range(50))


def test_order_is_the_same_in_every_release() -> None:
    # Fixed by value: a run that was begun with another version continues in the same order.
    assert Order(8, 8, 1, 8, seed=0).micro_batches(0) == [[0, 2, 1, 5, 4, 3, 6, 7]]
