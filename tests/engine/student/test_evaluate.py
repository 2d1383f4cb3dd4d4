from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.student import head, sliced_loss
from engine.student.evaluate import Calibration, HoldoutBatches, Metrics, evaluate, evaluate_teacher
from engine.student.head import LinearHead
from engine.student.learner import Learner
from tests.engine.student.small_run import SmallRun, make_run
from tests.tiny import VOCAB_SIZE, tiny_model


def measured(
    run: SmallRun, learner: Learner, *, micro_batch: int = 4, chunk_tokens: int = 13, limit_rows: int | None = None
) -> Metrics:
    return evaluate(
        learner,
        HoldoutBatches(run.source, micro_batch, limit_rows),
        vocab_size=VOCAB_SIZE,
        temperature=run.objective.temperature,
        chunk_tokens=chunk_tokens,
    )


def full_log_probs(run: SmallRun, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Every hold-out position's log-probabilities, and its label, with full logits."""
    model = run.learner(folder).model
    rows = run.tokens.rows("holdout", range(run.tokens.num_rows("holdout")))
    tokens, scored = torch.from_numpy(rows.tokens), torch.from_numpy(rows.scored)
    with torch.no_grad():
        log_probs = model(tokens).logits[..., :VOCAB_SIZE].double().log_softmax(-1)
    at = scored.nonzero()
    return log_probs[at[:, 0], at[:, 1] - 1], tokens[at[:, 0], at[:, 1]]


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])  # padded rows; a capped head
def test_figures_are_those_of_the_full_logits(tmp_path: Path, architecture: str) -> None:
    run = make_run(tmp_path, short=True, num_holdout=9)
    student = tiny_model(architecture, num_layers=2, seed=8)
    found = measured(run, run.learner(student))
    log_q, labels = full_log_probs(run, student)
    log_p, _ = full_log_probs(run, tiny_model("llama"))
    loss = float(-log_q.gather(1, labels[:, None]).mean())
    assert found.tokens == len(labels)
    assert math.isclose(found.holdout_loss, loss, rel_tol=1e-5)
    assert math.isclose(found.perplexity, math.exp(loss), rel_tol=1e-5)
    agreement = float((log_q.argmax(1) == log_p.argmax(1)).double().mean())
    assert math.isclose(found.top1_agreement, agreement, abs_tol=1e-9)
    # The records are draws: their KL is an estimate, with a spread that this many positions make small.
    true_kl = float((log_p.exp() * (log_p - log_q)).sum(1).mean())
    assert abs(found.kl_to_teacher - true_kl) < 0.25 * true_kl


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_head_in_another_format_is_measured_in_slices_and_never_copied_whole(
    tmp_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, short=True, num_holdout=9, temperature=temperature)
    learner = run.learner(tiny_model("qwen2", num_layers=2, seed=8))
    whole = measured(run, learner)
    assert isinstance(learner.head, LinearHead)
    learner.head = replace(learner.head, dtype=torch.float64)
    monkeypatch.setattr(sliced_loss, "_LOGITS_BYTES", 1)  # the smallest slices
    monkeypatch.setattr(head, "_LinearPass", None)
    in_slices = measured(run, learner)
    for name, value in whole.as_dict().items():
        assert math.isclose(in_slices.as_dict()[name], value, rel_tol=1e-5), name


def test_records_that_hold_everything_give_the_exact_divergence(tmp_path: Path) -> None:
    run = make_run(tmp_path, record_size=255, temperature=2.0)
    student = tiny_model("llama", num_layers=2, seed=8)
    log_q = ((full_log_probs(run, student)[0]) / 2).log_softmax(1)
    log_p = ((full_log_probs(run, tiny_model("llama"))[0]) / 2).log_softmax(1)
    true_kl = float((log_p.exp() * (log_p - log_q)).sum(1).mean())
    assert math.isclose(measured(run, run.learner(student)).kl_to_teacher, true_kl, rel_tol=0.02)


def test_teacher_measured_as_a_student_gives_what_its_records_say(tmp_path: Path) -> None:
    run = make_run(tmp_path, short=True, record_size=64)
    from_records = evaluate_teacher(HoldoutBatches(run.source, 4))
    as_student = measured(run, run.learner(tiny_model("llama")))
    assert math.isclose(from_records.holdout_loss, as_student.holdout_loss, rel_tol=2e-3)  # float16 in the records
    assert math.isclose(from_records.ece, as_student.ece, abs_tol=2e-3)
    assert from_records.top1_agreement == as_student.top1_agreement == 1.0
    assert from_records.kl_to_teacher == 0.0
    assert abs(as_student.kl_to_teacher) < 0.05


def test_batches_chunks_and_a_limit_change_only_what_they_should(tmp_path: Path) -> None:
    run = make_run(tmp_path, short=True, num_holdout=7)
    learner = run.learner()
    whole = measured(run, learner, micro_batch=7, chunk_tokens=1000)
    cut = measured(run, learner, micro_batch=2, chunk_tokens=5)
    for name, value in whole.as_dict().items():
        assert math.isclose(value, cut.as_dict()[name], rel_tol=1e-5), name
    assert measured(run, learner, limit_rows=2).tokens < whole.tokens


def test_training_mode_and_gradients_are_left_as_they_were(run: SmallRun) -> None:
    learner = run.learner()
    learner.model.train()
    measured(run, learner)
    assert learner.model.training
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def test_no_holdout_row_gives_zeros_and_no_division_by_zero(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_holdout=0)
    assert measured(run, run.learner()).tokens == 0
    assert evaluate_teacher(HoldoutBatches(run.source, 2)).tokens == 0


def test_calibration_error_by_hand() -> None:
    calibration = Calibration()
    # Four at 0.9 of which two are right, and one at 0.5 that is right: (4 * |0.5 - 0.9| + 1 * |1 - 0.5|) / 5
    calibration.add(torch.tensor([0.9, 0.9, 0.9]), torch.tensor([True, True, False]))
    calibration.add(torch.tensor([0.9, 0.5]), torch.tensor([False, True]))
    assert math.isclose(calibration.error, (4 * 0.4 + 0.5) / 5, rel_tol=1e-6)


def test_confidence_at_a_border_belongs_to_the_lower_bin_and_the_ends_exist() -> None:
    calibration = Calibration()
    calibration.add(torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([False, True]))
    assert calibration.error == 0.0
    assert Calibration().error == 0.0
