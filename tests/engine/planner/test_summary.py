"""A plan in sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import RunConfig
from engine.planner import plan
from engine.planner.summary import summary


@pytest.mark.parametrize("place", ["manifest.json", "0f3a/manifest.json"], ids=["a run's cache", "a shared folder"])
def test_rows_that_the_cache_has_are_not_announced_as_read(place: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / place).parent.mkdir(parents=True)
    assert summary(plan(RunConfig(demo=True, cache_dir=cache)))[0].startswith("The teacher reads 1,200 rows")
    (cache / place).write_text("{}")
    told = summary(plan(RunConfig(demo=True, cache_dir=cache)))[0]
    assert told.startswith("The teacher reads only rows that the cache has no records of (all 1,200 rows: about ")
    assert told.endswith(").")


def test_one_step_is_told_in_the_singular() -> None:
    assert " in one step (" in summary(plan(RunConfig(demo=True, steps=1)))[1]
    assert " in 2 steps (" in summary(plan(RunConfig(demo=True, steps=2)))[1]


def test_no_more_rows_are_announced_than_the_text_has(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The cat sat on the mat and looked at the rain. " * 400)
    known = plan(RunConfig(demo=True, data=str(tmp_path), samples=2, steps=1, sequence_length=128))
    rows = known.text_rows
    assert rows is not None
    assert 2 < rows < 10_000
    assert summary(known)[0].startswith("The teacher reads 2 rows, ")
    for asked in (rows + 1, 10_000):
        planned = plan(RunConfig(demo=True, data=str(tmp_path), samples=asked, steps=1, sequence_length=128))
        assert summary(planned)[0].startswith(f"The teacher reads all rows of the text (about {rows}), ")
        reason = next(choice.reason for choice in planned.choices if choice.field == "samples")
        assert reason == f"you set it. The text has about {rows} rows: all are taken"


def test_a_run_that_ends_early_says_what_it_does_and_no_more() -> None:
    prepare, *_ = summary(plan(RunConfig(demo=True, until="prepare")))
    assert "no model is run" in prepare
    teacher, ends, _ = summary(plan(RunConfig(demo=True, until="teacher")))
    assert teacher.startswith("The teacher reads 1,200 rows")
    assert ends == "The run ends there, and can be resumed later."
    choice = next(choice for choice in plan(RunConfig(demo=True)).choices if choice.field == "until")
    assert choice.value is None, "it stands among the settings, so that the wizard can set it"
