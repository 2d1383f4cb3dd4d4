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
