from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.models.core import last_hidden_states, logits_of
from engine.student.batches import Prefetch, StepPart
from engine.student.learner import Learner
from engine.student.loss import Objective
from engine.student.optimizer import AdamW
from engine.student.order import Order
from engine.student.step import LossScale, StepResult, StepSettings, clip_factor, train_step
from tests.engine.student.small_run import SmallRun, make_run
from tests.tiny import ARCHITECTURES, VOCAB_SIZE, tiny_model


class KeepsGradients(AdamW):
    """Keeps what it was given instead of using it up."""

    def step(self) -> None:
        self.seen = {name: parameter.grad.clone() for name, parameter in self.parameters.items()}


def one_step(
    run: SmallRun,
    learner: Learner,
    micro_batch: int,
    accumulation: int,
    *,
    clip_norm: float = 0.0,
    objective: Objective | None = None,
) -> tuple[StepResult, dict[str, Tensor]]:
    order = Order(run.tokens.num_rows("train"), micro_batch, accumulation, micro_batch * accumulation, seed=1)
    optimizer = KeepsGradients(learner.model.named_parameters(), weight_decay=0.0)
    with Prefetch(run.source, order, 0) as ahead:
        result = train_step(
            learner,
            ahead.step(),
            optimizer,
            StepSettings(objective or run.objective, learning_rate=1e-3, clip_norm=clip_norm, chunk_tokens=7),
        )
    return result, optimizer.seen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_the_full_logits(tmp_path: Path, architecture: str) -> None:
    run = make_run(tmp_path, short=True)
    learner = run.learner(tiny_model(architecture, num_layers=2, seed=4))
    result, gradients = one_step(run, learner, 8, 1)

    model = learner.model
    model.zero_grad()
    batch, _ = run.source.micro_batch("train", Order(12, 8, 1, 8, seed=1).micro_batches(0)[0])
    logits = logits_of(model, last_hidden_states(model, batch.tokens).flatten(0, 1))[:, :VOCAB_SIZE].double()
    log_q = logits.log_softmax(1)[batch.positions]
    records = batch.records
    dense = torch.zeros_like(log_q).scatter_add(1, records.ids, records.weights.double())
    kd = -(dense * log_q).sum() - records.entropy.sum()
    ce = -log_q.gather(1, batch.labels[:, None]).sum()
    loss = (0.8 * kd + 0.2 * ce) / len(batch.labels)
    loss.backward()  # type: ignore[no-untyped-call]

    assert result.tokens == len(batch.labels)
    assert math.isclose(result.loss, loss.item(), rel_tol=1e-5)
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradients[name], expected, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize(("micro_batch", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_any_cut_into_micro_batches_gives_the_same_gradient(
    tmp_path: Path, micro_batch: int, accumulation: int
) -> None:
    # Rows of different lengths: a mean of the micro-batches' means would weigh short rows more.
    run = make_run(tmp_path, short=True)
    learner = run.learner()
    whole, expected = one_step(run, learner, 8, 1)
    cut, gradients = one_step(run, learner, micro_batch, accumulation)
    assert cut.tokens == whole.tokens
    assert math.isclose(cut.loss, whole.loss, rel_tol=1e-6)
    assert math.isclose(cut.grad_norm, whole.grad_norm, rel_tol=1e-4)
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-6)


def test_the_gradient_of_the_embedding_is_made_after_the_activations_are_gone(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = run.learner()
    embedding, loss = learner.model.get_input_embeddings().weight, learner.loss
    assert not learner.tied
    seen: list[bool] = []
    monkeypatch.setattr(
        learner, "loss", lambda *given, **more: seen.append(embedding.grad is None) or loss(*given, **more)
    )
    _, gradients = one_step(run, learner, 8, 1)
    assert seen == [True]
    (gradient,) = (found for name, found in gradients.items() if "embed" in name)
    assert not gradient.is_sparse
    assert gradient.abs().sum() > 0


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, short=True)
    _, plain = one_step(run, run.learner(), 4, 2)
    learner = run.learner(gradient_checkpointing=True)
    learner.model.train()
    _, checkpointed = one_step(run, learner, 4, 2)
    torch.testing.assert_close(checkpointed, plain)


def test_clipping_bounds_the_norm_of_the_whole_gradient(run: SmallRun) -> None:
    learner = run.learner()
    result, gradients = one_step(run, learner, 4, 2, clip_norm=0.01)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert result.grad_norm > 0.02
    assert math.isclose(float(norm), 0.01, rel_tol=1e-4)


def test_clip_factor_at_its_ends() -> None:
    assert clip_factor(10.0, 0.0) == 1.0
    assert clip_factor(0.0, 1.0) == 1.0
    assert clip_factor(4.0, 1.0) == 0.25


def test_bfloat16_is_near_and_keeps_float32_weights(run: SmallRun) -> None:
    _, exact = one_step(run, run.learner(), 4, 1)
    learner = run.learner(dtype=torch.bfloat16)
    _, half = one_step(run, learner, 4, 1)
    assert {parameter.dtype for parameter in learner.model.parameters()} == {torch.float32}
    total = torch.cat([gradient.flatten() for gradient in exact.values()])
    found = torch.cat([gradient.flatten() for gradient in half.values()])
    assert found.dtype == torch.float32
    assert (found - total).norm() < 0.05 * total.norm()


def test_labels_alone_and_teacher_alone_leave_the_other_out(run: SmallRun) -> None:
    learner = run.learner()
    labels, _ = one_step(run, learner, 4, 1, objective=Objective(VOCAB_SIZE, "unbiased", 0.0, 1.0))
    teacher, _ = one_step(run, learner, 4, 1, objective=Objective(VOCAB_SIZE, "unbiased", 1.0, 1.0))
    assert labels.loss == labels.ce
    assert teacher.loss == teacher.kd
    assert math.isclose(labels.kd, teacher.kd, rel_tol=1e-6)


def test_temperature_stands_on_both_sides(tmp_path: Path) -> None:
    # A student that is its own teacher has no KD at any temperature; with T on one side only it would have.
    teacher = tiny_model("llama")
    run = make_run(tmp_path, teacher=teacher, temperature=3.0, kd_weight=1.0, record_size=VOCAB_SIZE % 256)
    result, _ = one_step(run, run.learner(teacher), 4, 1)
    assert abs(result.kd) < 0.02


def test_float16_searches_its_factor_without_calling_it_bad() -> None:
    scale = LossScale.of(torch.float16)
    assert scale.take(overflowed=True)
    assert scale.value == 2.0**15
    assert not scale.take(overflowed=False)
    assert not LossScale.of(torch.float32).take(overflowed=True)


def test_step_without_any_scored_token_changes_nothing(run: SmallRun) -> None:
    learner = run.learner()
    batch, _ = run.source.micro_batch("train", [0])
    empty = type(batch)(batch.tokens, batch.positions[:0], batch.labels[:0], batch.records.at(slice(0, 0)))
    optimizer = AdamW(learner.model.named_parameters(), weight_decay=0.0)
    result = train_step(
        learner,
        [StepPart(empty, 0, True)],
        optimizer,
        StepSettings(run.objective, learning_rate=1e-3, clip_norm=1.0, chunk_tokens=8),
    )
    assert result.loss == 0
    assert not result.is_bad
