from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.student.schedule import Schedule


@given(
    total=st.integers(1, 500),
    warmup=st.floats(0, 0.99),
    kind=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_every_step_learns_and_none_more_than_the_peak(total: int, warmup: float, kind: str) -> None:
    schedule = Schedule(0.5, total, warmup, kind)  # type: ignore[arg-type]
    rates = [schedule.learning_rate(step) for step in range(total)]
    assert min(rates) > 0
    assert max(rates) <= 0.5 * (1 + 1e-12)


def test_rises_then_falls_to_a_tenth_or_to_nothing() -> None:
    cosine = Schedule(1.0, 1000, 0.1, "cosine")
    rates = [cosine.learning_rate(step) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[99] == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert Schedule(1.0, 1000, 0.1, "linear").learning_rate(999) == pytest.approx(1 / 900)
    assert Schedule(1.0, 1000, 0.1, "constant").learning_rate(999) == 1.0


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert Schedule(0.3, 10, 0.0, "cosine").learning_rate(0) == pytest.approx(0.3)
