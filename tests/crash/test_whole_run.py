"""A whole run is killed anywhere and goes on: the student is the one of a run that nobody touched, bit for bit.

``python -m tests.crash.harness --kills 200`` is the long version.
"""

from __future__ import annotations

import random

import pytest

from engine import supervisor
from tests.crash.harness import Harness, Kill


def test_every_protocol_has_commit_points_that_a_run_passes(harness: Harness) -> None:
    passed = {point.partition(":")[0].rpartition("-")[0] for _, point in harness.points}
    assert {
        "tokens",
        "shard",
        "journal",
        "checkpoint",
        "student",
        "config.json",
        "prepare.json",
        "teacher.json",
        "student.json",
        "manifest.json",
        "report.json",
        "report.md",
    } <= {*passed, *(name.partition("-")[0] for name in passed)}


@pytest.mark.parametrize(
    ("target", "role", "point"),
    [
        ("phase", "teacher", "shard-renamed:2"),
        ("power", "student", "checkpoint-renamed:3"),
        ("power", "student", "student-renamed:1"),
    ],
)
def test_killed_at_a_commit_point(harness: Harness, target, role, point) -> None:
    assert harness.differences(Kill(target, role, point, 0.0, 1)) == []


@pytest.mark.parametrize("target", ["supervisor", "both"])
def test_killed_at_a_moment(harness: Harness, target) -> None:
    assert harness.differences(Kill(target, "any", None, 0.6, 1)) in ([], None)


def test_a_run_that_comes_out_otherwise_is_noticed(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_not_for_memory", lambda killed_before: False)  # as it was once
    said = harness.differences(Kill("phase", "student", "checkpoint-renamed:2", 0.0, 0))
    assert said is not None
    assert "student/README.md differs" in said


@pytest.mark.slow
def test_killed_at_forty_places(harness: Harness) -> None:
    chance = random.Random(7)
    at_points = [*harness.at_points(chance)]
    kills = [at_points[place * len(at_points) // 25] for place in range(25)]
    at_random = harness.at_random(chance)
    kills += [next(at_random) for _ in range(15)]
    wrong = {str(kill): said for kill in kills if (said := harness.differences(kill))}
    assert wrong == {}
