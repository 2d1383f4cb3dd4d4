"""A plan that takes an earlier run's records shows what that run measured of other depths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.planner import Plan, plan
from engine.settings.config import RunConfig
from tests.tiny import tiny_model

CUTS: list[dict[str, Any]] = [
    {"layers": [0, 1, 2, 3], "holdout_loss": 3.4},
    {"layers": [0, 1, 3], "holdout_loss": 4.183},
    {"layers": [0, 3], "holdout_loss": None},
    {"layers": [0], "holdout_loss": float("nan")},
]


def earlier(folder: Path, teacher: str, cuts: object = CUTS) -> Path:
    """The records of a run that measured these cuts."""
    (folder / "phases").mkdir(parents=True)
    (folder / "cache").mkdir()
    (folder / "run.json").write_text(json.dumps({"settings": {"teacher": teacher}}))
    (folder / "phases" / "cut.json").write_text(json.dumps({"cuts": cuts}))
    return folder / "cache"


def reason(planned: Plan) -> str:
    return next(choice.reason for choice in planned.choices if choice.field == "student_layers")


def planned(teacher: str, **values: Any) -> Plan:
    return plan(RunConfig.parse({"teacher": teacher, "student": "from-teacher", **values}), strict=False)


@pytest.mark.parametrize("layers", [None, 3])
def test_losses_of_other_depths_are_in_the_plan(tmp_path: Path, layers: int | None) -> None:
    teacher = str(tiny_model("llama", num_layers=4))
    cache = earlier(tmp_path / "notes", teacher)
    asked = {} if layers is None else {"student_layers": layers}
    found = reason(planned(teacher, cache_dir=str(cache), **asked))
    assert found.endswith("Loss right after the cut, as notes measured it: 4 layers 3.40, 3 layers 4.18")


def test_a_first_plan_says_how_they_are_measured() -> None:
    assert "--until teacher shows the cost of other depths" in reason(planned(str(tiny_model("llama", num_layers=4))))


@pytest.mark.parametrize("cuts", [[], None, {}, [3], [{"layers": 3}], [{"layers": [0], "holdout_loss": "x"}]])
def test_a_file_that_says_nothing_is_not_shown(tmp_path: Path, cuts: object) -> None:
    teacher = str(tiny_model("llama", num_layers=4))
    assert "as notes" not in reason(planned(teacher, cache_dir=str(earlier(tmp_path / "notes", teacher, cuts))))


def test_measurements_of_another_teacher_are_not_shown(tmp_path: Path) -> None:
    cache = earlier(tmp_path / "notes", "/models/another")
    assert "as notes" not in reason(planned(str(tiny_model("llama", num_layers=4)), cache_dir=str(cache)))
