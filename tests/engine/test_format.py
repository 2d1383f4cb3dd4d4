import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import format as units
from engine.settings.config import RunConfig


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (309 * 2**20, "309 MiB"),
        (2.6 * 2**30, "2.6 GiB"),
        (1023.9 * 2**20, "1.0 GiB"),
        (5 * 2**50, "5120 TiB"),
        (-(2**20), "-1.0 MiB"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_bytes_are_in_binary_units_with_at_most_three_digits(value, text):
    assert units.format_bytes(value) == text


def test_two_sizes_share_the_unit_of_the_larger():
    assert units.format_bytes_like(0.4 * 2**30, 3 * 2**30) == "0.4"
    assert units.bytes_unit(3 * 2**30) == "GiB"
    assert units.bytes_unit(12) == "B"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (2460, "41 min"),
        (3599, "1 h 00"),
        (10_920, "3 h 02"),
        (363_600, "4 d 5 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds, text):
    assert units.format_duration(seconds) == text


def test_clock_shows_hours_only_when_there_are_some():
    assert [units.format_clock(s) for s in (42, 5590, -3)] == ["0:42", "1:33:10", "0:00"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1024, "1,024"), (99_999, "99,999"), (151_646, "152 k"), (9.4e6, "9.4 M"), (999_600, "1.0 M"), (1.54e9, "1.5 B")],
)
def test_counts_are_whole_below_a_hundred_thousand(value, text):
    assert units.format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (26_100, "26.1 k tokens/s"),
        (3.2, "3.2 tokens/s"),
        (0.05, "3.0 tokens/min"),
        (0.0005, "1.8 tokens/h"),
        (2.5e6, "2.5 M tokens/s"),
    ],
)
def test_slow_rates_are_given_by_the_minute_or_hour(value, text):
    assert units.format_rate(value, "tokens") == text


def test_percent_is_100_only_when_it_is_whole():
    assert [units.format_percent(x) for x in (0.5, 0.999, 1.0)] == ["50 %", "99 %", "100 %"]


def test_moments_are_short_when_they_are_near():
    now = time.mktime((2026, 4, 12, 13, 0, 0, 0, 0, -1))
    assert units.format_when(now - 3600, now) == "12:00"
    assert units.format_when(now - 3 * 86_400, now) == "Apr 9"
    assert units.format_when(now - 400 * 86_400, now) == "2025-03-08"


def test_numbers_below_the_last_digit_are_not_shown_as_zero():
    assert [units.format_number(x) for x in (2.3164, 1.1e-05, 0.0, None)] == ["2.316", "1.1e-05", "0.000", "–"]


@pytest.mark.parametrize(
    ("value", "text"), [(3 * 2**30, "3GiB"), (340_000_000, "340MB"), (700 * 2**20, "700MiB"), (1_000_001, "1000001")]
)
def test_size_that_was_typed_is_written_as_it_was_typed(value, text):
    assert units.exact_bytes(value) == text


@given(st.integers(1, 2**45))
def test_exact_size_is_read_back_whole(value):
    assert RunConfig(ram_budget=units.exact_bytes(value)).ram_budget == value
