"""The original had no cross-entropy to the label, and no measure against the teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from engine.student.evaluate import HoldoutBatches, evaluate_teacher
from engine.student.step import StepResult
from engine.student.train import look
from tests.engine.student.small_run import make_run
from tests.engine.student.test_step import one_step


def test_labels_teach_the_student(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    learner = run.learner()

    def step(kd_weight: float) -> tuple[StepResult, dict[str, Tensor]]:
        return one_step(run, learner, 4, 1, objective=replace(run.objective, kd_weight=kd_weight))

    (labels, from_labels), (_, from_teacher), (both, from_both) = step(0.0), step(1.0), step(0.5)
    assert labels.grad_norm > 0.1
    assert math.isclose(both.loss, 0.5 * both.kd + 0.5 * both.ce, rel_tol=1e-6)
    half_of_each = {name: (from_labels[name] + from_teacher[name]) / 2 for name in from_both}
    torch.testing.assert_close(from_both, half_of_each, rtol=1e-3, atol=1e-6)


def test_student_is_measured_against_its_teacher(tmp_path: Path) -> None:
    run = make_run(tmp_path, record_size=64)
    student, teacher = look(run.training()), evaluate_teacher(HoldoutBatches(run.source, 2))
    assert student.kl_to_teacher > 0.1
    assert student.top1_agreement < 1
    assert teacher.kl_to_teacher == 0
    assert teacher.holdout_loss > 0
    assert 0 <= student.ece <= 1
