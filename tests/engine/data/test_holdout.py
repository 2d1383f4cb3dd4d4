from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.data.holdout import is_holdout


def test_five_percent_is_part_of_ten_percent() -> None:
    texts = [f"document {number}" for number in range(4000)]
    five = {text for text in texts if is_holdout(text, 0.05)}
    ten = {text for text in texts if is_holdout(text, 0.10)}
    assert five < ten


def test_share_held_out_is_the_fraction_asked_for() -> None:
    held_out = sum(is_holdout(f"document {number}", 0.10) for number in range(10_000))
    # 5 standard deviations of a binomial with n = 10,000 and p = 0.1
    assert abs(held_out - 1000) < 150


def test_sides_are_the_same_in_every_process_and_release() -> None:
    # Fixed by value: shipped weights were trained on one side, a cache was scored on it.
    sides = "".join("x" if is_holdout(str(number), 0.25) else "." for number in range(24))
    assert sides == "..x...x..........xx....x"


@given(st.text())
def test_ends_hold_out_nothing_and_everything(text: str) -> None:
    assert not is_holdout(text, 0.0)
    assert is_holdout(text, 1.0)


def test_lone_surrogate_is_no_error() -> None:
    assert is_holdout("\ud800", 1.0)
