"""Thousands of steps leave memory, threads and open files as they were."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from engine.models.memory import return_memory
from tests.engine.student.small_run import make_run
from tests.engine.student.test_train import go


def anonymous_bytes() -> int:
    return_memory()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.slow
@pytest.mark.parametrize("lean", [False, True])
def test_memory_is_flat_over_thousands_of_steps(tmp_path: Path, lean: bool) -> None:
    run = make_run(tmp_path)
    values = {"micro_batch": 2, "gradient_accumulation": 1, "lean": lean, "checkpoint_every": 50}
    go(run, run.training(steps=200, **values))
    before = anonymous_bytes(), threading.active_count(), len(os.listdir("/proc/self/fd"))
    go(run, run.training(steps=3000, **values))
    after = anonymous_bytes(), threading.active_count(), len(os.listdir("/proc/self/fd"))
    assert after[0] - before[0] < 4 * 2**20
    assert after[1] == before[1]
    assert after[2] - before[2] <= 2  # the second event file of this test
