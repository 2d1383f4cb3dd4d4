"""Runs that train an adapter, killed anywhere: student, adapter and figures are those of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import pytest

from tests.crash.harness import Harness, Kill, Life, differing, outcome
from tests.crash.test_faults import full_disk
from tests.tiny import tiny_model

STREAMED = {"student_layer_by_layer": True, "student_quantization": "nf4"}
WAYS: dict[str, dict[str, Any]] = {
    "streamed in nf4": {"lora_rank": 4, **STREAMED},
    "cut from the teacher": {"lora_rank": 4, "student": "from-teacher", "student_layers": 1, "cpu_offload": True},
    "compared with labels": {"lora_rank": 8, "student_quantization": "int8", "compare": "labels"},
}
FULL = ["checkpoint-renamed:1", "student-synced:1"]
POINTS = [
    ("phase", "checkpoint-renamed:3"),
    ("power", "checkpoint-renamed:2"),
    ("phase", "student-written:1"),
    ("power", "student-renamed:1"),
    ("power", "student.json-renamed:1"),
    ("power", "student-written:1"),
]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return harness_of("streamed in nf4", tmp_path_factory)


def harness_of(way: str, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    student = {"student": str(tiny_model("llama", num_layers=1, seed=3, dtype="bfloat16")), "student_layers": None}
    return Harness(tmp_path_factory.mktemp("harness"), {**student, **WAYS[way]})


@pytest.mark.slow
def test_killed_while_the_student_is_written(harness: Harness) -> None:
    assert "student/adapter/adapter_model.safetensors" in harness.expected
    assert harness.differences(Kill("power", "student", "student-renamed:1", 0.0, 1)) == []


@pytest.mark.slow
def test_a_full_disk_is_told_and_a_resumed_run_writes_the_same_student(harness: Harness) -> None:
    assert full_disk(harness, "student", "student-written:1") == []


def test_a_run_that_is_stopped_continues_to_the_same_bits(harness: Harness) -> None:
    """SIGTERM, which a service manager or a scheduler sends."""
    folder = harness.new_run()
    life = Life(folder)
    while not list((folder / "checkpoints").glob("step-*")):
        time.sleep(0.01)
        assert not (folder / "report.json").exists()
    os.kill(life.pid, signal.SIGTERM)
    assert life.wait() == 130
    assert Life(folder).wait() == 0
    assert differing(outcome(folder), harness.expected) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", list(WAYS))
def test_killed_at_many_places(way: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Four of the six places for each way, so that two ways are killed at each, and moments between them."""
    harness = harness_of(way, tmp_path_factory)
    number = list(WAYS).index(way)
    chance = random.Random(5 + number)
    points = [place for which, place in enumerate(POINTS) if which % 3 != number]
    kills = [Kill(target, "student", point, 0.0, 2) for target, point in points]  # type: ignore[arg-type]
    at_random = harness.at_random(chance)
    kills += [next(at_random) for _ in range(2)]
    wrong = {str(kill): said for kill in kills if (said := harness.differences(kill))}
    point = FULL[number % 2]
    wrong |= {point: said} if (said := full_disk(harness, "student", point)) else {}
    assert wrong == {}
