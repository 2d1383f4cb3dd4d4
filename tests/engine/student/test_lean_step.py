from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.errors import Stopped
from engine.student import sliced_loss
from engine.student.batches import Prefetch
from engine.student.lean_step import RunningNorms, can_be_lean, lean_step
from engine.student.learner import Learner
from engine.student.optimizer import AdamW
from engine.student.order import Order
from engine.student.step import StepResult, StepSettings, train_step
from engine.student.train import look
from tests.engine.student.small_run import SmallRun, make_run
from tests.engine.student.test_train import StopsAfter, go, weights
from tests.tiny import tiny_model

LINEAR_HEADS = ("llama", "qwen2", "gpt_neox", "gpt2")  # untied and tied, padded, learned positions


class Noting(AdamW):
    """Adds up the gradients that it is given, beside using them."""

    noted: dict[str, Tensor]

    def update(self, name: str, gradient: Tensor, rows: slice | Tensor | None = None) -> None:
        noted = self.noted.setdefault(name, torch.zeros_like(self.parameters[name]))
        noted[slice(None) if rows is None else rows] += gradient
        super().update(name, gradient, rows)


def step(run: SmallRun, learner: Learner, *, lean: bool, rows: int = 6) -> tuple[StepResult, dict[str, Tensor]]:
    learner.model.train()
    optimizer = Noting(learner.model.named_parameters(), weight_decay=0.0)
    optimizer.noted = {}
    with Prefetch(run.source, Order(run.tokens.num_rows("train"), rows, 1, rows, seed=1), 0) as ahead:
        settings = StepSettings(run.objective, learning_rate=1e-2, clip_norm=0.0, chunk_tokens=9)
        if lean:
            result = lean_step(learner, ahead.step(), optimizer, settings, RunningNorms(1.0, {}))
        else:
            result = train_step(learner, ahead.step(), optimizer, settings)
    return result, optimizer.noted


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", LINEAR_HEADS)
def test_gradients_that_are_applied_are_those_of_the_usual_way(
    tmp_path: Path, architecture: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliced_loss, "_GRADIENT_BYTES", 1)  # slices of 64 rows
    run = make_run(tmp_path, short=True, temperature=2.0)
    student = tiny_model(architecture, num_layers=2, seed=6)
    usual = run.learner(student, gradient_checkpointing=checkpointing)
    lean = run.learner(student, gradient_checkpointing=checkpointing)
    assert can_be_lean(lean)
    (expected, gradients), (found, applied) = step(run, usual, lean=False), step(run, lean, lean=True)
    assert math.isclose(found.loss, expected.loss, rel_tol=1e-5)
    assert math.isclose(found.ce, expected.ce, rel_tol=1e-5)
    assert math.isclose(found.grad_norm, expected.grad_norm, rel_tol=1e-4)
    torch.testing.assert_close(applied, gradients, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in lean.model.parameters())


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        known = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor) and not arg.is_sparse}
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if not isinstance(tensor, Tensor) or tensor.is_sparse:
                continue
            if tensor.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_no_gradient_of_the_size_of_embedding_or_head_is_ever_made(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliced_loss, "_GRADIENT_BYTES", 1)
    run = make_run(tmp_path)
    student = tiny_model(architecture, num_layers=2, hidden_size=64, seed=6)
    learner = run.learner(student)
    whole = learner.model.get_input_embeddings().weight.numel()

    def largest(lean: bool) -> int:
        learner = run.learner(student)  # its weights are not counted
        with Largest() as watch:
            step(run, learner, lean=lean, rows=1)
        return watch.elements

    # Moments are made at the first update, and are of the parameter's size: they are not counted.
    monkeypatch.setattr(Noting, "update", lambda *args: None)
    assert largest(lean=False) >= whole
    assert largest(lean=True) <= 2 * 64 * 64 < whole  # the gradient of a layer's widest matrix


@pytest.mark.parametrize("architecture", ["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_lean_student_learns(tmp_path: Path, architecture: str) -> None:
    run = make_run(tmp_path, num_rows=64, num_holdout=24, record_size=12)
    learner = run.learner(tiny_model(architecture, num_layers=2, hidden_size=64, seed=6))
    training = run.training(
        learner, micro_batch=8, gradient_accumulation=1, steps=60, learning_rate=1e-2, lean=True, bits=8
    )
    assert training.is_lean
    before = look(training)
    go(run, training)
    after = look(training)
    assert after.kl_to_teacher < 0.7 * before.kl_to_teacher
    assert after.holdout_loss < before.holdout_loss


def test_stopped_and_resumed_ends_the_same_bit_for_bit(tmp_path: Path) -> None:
    values = {"micro_batch": 4, "gradient_accumulation": 1, "lean": True, "bits": 8}
    student = tiny_model("qwen2", num_layers=2, hidden_size=64)
    run, other = make_run(tmp_path / "whole"), make_run(tmp_path / "broken")
    whole = run.training(run.learner(student), **values)
    go(run, whole)
    with pytest.raises(Stopped):
        go(other, other.training(other.learner(student), **values), StopsAfter(3))
    resumed = other.training(other.learner(student), **values)
    go(other, resumed)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_is_not_lean_where_it_cannot_be(run: SmallRun) -> None:
    assert not run.training(lean=True, gradient_accumulation=2).is_lean
    capped = run.learner(tiny_model("gemma2", num_layers=2))
    assert not run.training(capped, lean=True, gradient_accumulation=1).is_lean
    assert not run.training(gradient_accumulation=1).is_lean


def test_loss_that_is_no_number_changes_nothing(run: SmallRun) -> None:
    learner = run.learner()
    with torch.no_grad():
        learner.model.lm_head.weight[7, 3] = math.inf
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    assert step(run, learner, lean=True)[0].is_bad
    torch.testing.assert_close(dict(learner.model.state_dict()), before, rtol=0, atol=0)


def test_gradient_that_is_no_number_leaves_its_tensor_and_is_told(run: SmallRun) -> None:
    learner = run.learner()
    parameter = learner.model.model.layers[0].mlp.up_proj.weight
    parameter.register_hook(lambda gradient: gradient * math.nan)
    before = parameter.detach().clone()
    assert step(run, learner, lean=True)[0].is_bad
    assert torch.equal(parameter, before)
    assert all(value.isfinite().all() for value in learner.model.state_dict().values())


def test_steady_gradients_are_clipped_as_by_their_whole_norm() -> None:
    norms: dict[str, float] = {}
    for _ in range(3):
        running = RunningNorms(1.0, norms)
        factors = {name: running.factor(name, norm) for name, norm in (("a", 3.0), ("b", 4.0))}
        running.saw("a", 3.0)
        for _ in range(4):
            running.saw("b", 2.0)  # in slices
        assert running.finish() == pytest.approx(5.0)
    assert factors == pytest.approx({"a": 0.2, "b": 0.2})
    assert running.factor("b") == pytest.approx(0.2)


def test_sudden_gradient_is_cut_to_its_usual_share() -> None:
    running = RunningNorms(1.0, {"a": 0.3, "b": 0.4})
    assert running.factor("a", 0.3) == 1.0
    assert running.factor("a", 60.0) * 60.0 == pytest.approx(0.6)
    assert RunningNorms(0.0, {"a": 9.0}).factor("a", 99.0) == 1.0
    assert RunningNorms(1.0, {}).factor("new", 99.0) == 1.0
