"""The report's pictures: whole SVG files with the figures that they show, made without a display."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from engine.run import report as reports
from engine.run.pictures import _ticks, draw_all
from tests.tinydistill_tui.fixtures import REPORT, events_of

BINS = [[10, 0.1, 0.12], [20, 0.45, 0.4], [5, 0.9, 0.97]]
NAMES = {"loss.svg", "memory.svg", "calibration.svg"}


def report(**more: Any) -> dict[str, Any]:
    people = {who: {**REPORT[who], "calibration": BINS} for who in ("teacher", "student_before", "student_after")}
    return {**REPORT, **people, **more}


def lines_of(picture: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(picture)
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]
        for line in root.iter("{http://www.w3.org/2000/svg}polyline")
    ]


def test_a_finished_run_has_three_pictures_that_stay_inside_their_frame() -> None:
    found = draw_all(events_of("done", "a run", 2_000_000_000.0), report())
    assert set(found) == NAMES
    for name, picture in found.items():
        lines = lines_of(picture)
        assert len(lines) > 1, name
        for x, y in (point for line in lines for point in line):
            assert 0 <= x <= 720, name
            assert 0 <= y <= 360, name
            assert math.isfinite(x + y), name


def test_the_training_loss_falls_in_the_picture_as_in_the_events() -> None:
    events: list[Any] = [
        {"time": 0.0, "kind": "metric", "step": step, "loss": 5.0 / step, "phase": "student"} for step in range(1, 901)
    ]
    trained = lines_of(draw_all(events, report())["loss.svg"])[0]
    assert len(trained) == 400, "thousands of steps are thinned"
    heights = [y for _, y in trained]
    assert heights == sorted(heights), "further down is less"
    assert trained[0][0] < trained[-1][0]


def test_a_step_that_is_told_again_after_a_resume_counts_once() -> None:
    events: list[Any] = [
        {"time": 0.0, "kind": "metric", "step": step, "loss": loss, "phase": "student"}
        for step, loss in ((1, 3.0), (2, 2.5), (3, 9.0), (3, 2.0), (4, math.nan))
    ]
    assert len(lines_of(draw_all(events, report())["loss.svg"])[0]) == 3


def test_what_is_missing_has_no_picture() -> None:
    assert draw_all([], REPORT) == {}, "an older report has no bins"
    assert set(draw_all([], report())) == {"calibration.svg"}


def test_words_are_escaped() -> None:
    odd = [{"time": float(time), "kind": "memory", "phase": "teacher", "bytes": 9, "peak_bytes": 9} for time in (0, 9)]
    ElementTree.fromstring(draw_all(odd, report(phases={"teacher": {"predicted_peak_bytes": None}}))["memory.svg"])


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0), (2.4, 2.4), (1e-9, 3e-9), (0, 12_345), (-3, 5), (2.101, 2.103), (0, 0.572)]
)
def test_round_values_enclose_what_is_drawn(low: float, high: float) -> None:
    found = _ticks(low, high)
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))


def test_the_report_shows_the_pictures_that_there_are() -> None:
    made = {**report(), "intervals": {}, "chance": None, "compare": {}}
    for phase in made["phases"].values():
        phase.setdefault("overhead_seconds", None)
        phase.setdefault("gemm_share", None)
    text = reports.in_words(made, "a-run", pictures=["loss.svg"])
    assert "![loss](pictures/loss.svg)" in text
    assert "memory.svg" not in text
