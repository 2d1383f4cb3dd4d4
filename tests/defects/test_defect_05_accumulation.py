"""The original cleared the gradient on every micro-batch: accumulation did nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.engine.student.small_run import make_run
from tests.engine.student.test_step import one_step


def test_every_micro_batch_of_a_step_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path, short=True)
    learner = run.learner()
    _, whole = one_step(run, learner, 8, 1)
    _, accumulated = one_step(run, learner, 2, 4)
    torch.testing.assert_close(accumulated, whole, rtol=1e-3, atol=1e-6)
    _, one_of_four = one_step(run, learner, 2, 1)
    assert any(not torch.allclose(one_of_four[name], whole[name], rtol=0.05) for name in whole), (
        "rows are so alike that this test shows nothing"
    )
