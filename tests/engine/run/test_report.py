"""Time and memory of a run's phases, from its events."""

from __future__ import annotations

from engine.run.report import _spent


def test_a_clock_that_is_set_back_takes_no_time_from_a_phase() -> None:
    """A phase of 14 seconds took "0 s", since its events end before they begin."""
    events = [
        {"kind": "phase_started", "phase": "student", "time": 10_000.0},
        {"kind": "memory", "phase": "student", "time": 2_805.0, "peak_bytes": 7},
        {"kind": "phase_finished", "phase": "student", "time": 2_814.0, "seconds": 14.0},
    ]
    assert _spent(events)["student"] == {"seconds": 14.0, "peak_bytes": 7}
    again = [{**event, "time": event["time"] + 9} for event in events]
    assert _spent([*events, *again])["student"]["seconds"] == 28.0, "all processes of a phase are counted"


def test_a_phase_whose_end_is_not_told_is_counted_by_its_events() -> None:
    killed = [
        {"kind": "phase_started", "phase": "teacher", "time": 5.0},
        {"kind": "memory", "phase": "teacher", "time": 8.0, "peak_bytes": 7},
        {"kind": "run_resumed", "time": 900.0},
    ]
    assert _spent(killed)["teacher"]["seconds"] == 3.0
