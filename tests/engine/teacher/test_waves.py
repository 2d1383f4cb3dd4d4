"""Waves: every row is in one, whatever their lengths, and ranks get the same share of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.teacher.waves import cut, dealt


@given(num_rows=st.integers(0, 300), long=st.integers(1, 40), short=st.integers(1, 40))
def test_every_row_is_in_one_wave_and_in_order(num_rows: int, long: int, short: int) -> None:
    waves = cut(num_rows, long, min(short, long))
    assert [row for wave in waves for row in wave] == list(range(num_rows))
    assert all(0 < len(wave) <= long for wave in waves)


def test_the_last_rows_are_in_short_waves_and_the_others_in_long_ones() -> None:
    assert [len(wave) for wave in cut(1000, 128, 32)] == [128] * 6 + [32] * 7 + [8]
    assert [len(wave) for wave in cut(300, 128, 128)] == [128, 128, 44]


@given(sizes=st.lists(st.integers(1, 128), max_size=60), world=st.integers(1, 9))
def test_ranks_get_shares_that_differ_by_a_wave_at_most(sizes: list[int], world: int) -> None:
    owners = dealt(sizes, world)
    loads = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(world)]
    assert sum(loads) == sum(sizes)
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_two_ranks_share_a_small_text_evenly() -> None:
    # Two ranks that took three long waves in turn would take 2/3 of the time of one.
    sizes = [len(wave) for wave in cut(378, 128, 32)]
    owners = dealt(sizes, 2)
    larger = max(sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(2))
    assert sum(sizes) / larger > 1.95
