"""The original applied the temperature on one side only."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.student.train import look
from tests.engine.student.small_run import make_run
from tests.engine.student.test_step import one_step
from tests.tiny import tiny_model


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_student_that_is_its_teacher_has_no_divergence(tmp_path: Path, temperature: float) -> None:
    teacher = tiny_model("llama")
    run = make_run(tmp_path, teacher=teacher, temperature=temperature, kd_weight=1.0, record_size=255)
    learner = run.learner(teacher)
    result, _ = one_step(run, learner, 4, 1)
    other, _ = one_step(run, run.learner(), 4, 1)
    assert abs(result.kd) < 0.02 * other.kd
    assert result.grad_norm < 0.5 * other.grad_norm  # log-probs are kept in a byte: rounding has a gradient of its own
    assert abs(look(run.training(learner)).kl_to_teacher) < 0.01
