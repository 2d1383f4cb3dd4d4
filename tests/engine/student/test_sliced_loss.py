from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.student import sliced_loss as module
from engine.student.head import LinearHead
from engine.student.loss import Objective, record_loss
from engine.student.sliced_loss import sliced_loss
from tests.engine.student.test_loss import TARGETS, make_records, relative_error


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRADIENT_BYTES", 1)  # the fewest rows in a slice, 64


def both_ways(
    objective: Objective, *, bias: bool, k: int = 6, dtype: torch.dtype | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Sums and gradients by slices, and by chunks in float64."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    linear = nn.Linear(8, 260, bias=bias)
    linear = linear if dtype is not None else linear.double()
    precise = torch.float64 if dtype is None else torch.float32
    records = make_records(generator, 33, objective.vocab_size, k, dtype=precise)
    labels = torch.randint(0, objective.vocab_size, (33,), generator=generator)
    states = torch.randn(33, 8, generator=generator, dtype=precise).requires_grad_()

    head = LinearHead(linear.weight, linear.bias, dtype)
    weight, bias_gradient = torch.zeros_like(linear.weight), torch.zeros(260).to(precise)

    def take(rows: slice, gradient: Tensor, of_bias: Tensor | None) -> None:
        weight[rows] = gradient
        if of_bias is not None:
            bias_gradient[rows] = of_bias.to(precise)

    loss = sliced_loss(states, labels, records, head, objective=objective)
    hidden = loss.backward(0.5, on_rows=take)
    assert hidden is not None

    whole = record_loss(
        states, labels, records, LinearHead(linear.weight, linear.bias), objective=objective, chunk_tokens=33, scale=0.5
    )
    expected = torch.autograd.grad(whole.loss, [states, *linear.parameters()])
    found = (loss.ce_sum, loss.kd_sum, hidden, weight, *([bias_gradient] if bias else []))
    return found, (whole.ce_sum, whole.kd_sum, *expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.4])
@pytest.mark.parametrize("kd_weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_slices_give_what_chunks_give(target: str, temperature: float, kd_weight: float, bias: bool) -> None:
    objective = Objective(251, target, kd_weight, temperature)  # type: ignore[arg-type]
    found, expected = both_ways(objective, bias=bias)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [1, 255])
def test_smallest_and_largest_records(k: int) -> None:
    found, expected = both_ways(Objective(251, "ghost", 0.9, 1.0), bias=False, k=k)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_near() -> None:
    found, expected = both_ways(Objective(251, "unbiased", 0.5, 1.0), bias=True, dtype=torch.bfloat16)
    for ours, exact in zip(found, expected, strict=True):
        assert relative_error(ours, exact.double()) < 0.02


def test_rows_may_be_changed_as_soon_as_they_are_handed_out() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(200, 8, generator=generator)
    records = make_records(generator, 9, 200, 5, dtype=torch.float32)
    labels = torch.randint(0, 200, (9,), generator=generator)
    states = torch.randn(9, 8, generator=generator)
    loss = sliced_loss(states, labels, records, LinearHead(weight), objective=Objective(200))
    untouched = loss.backward(1.0)

    def spoil(rows: slice, gradient: Tensor, bias: Tensor | None) -> None:
        weight[rows] = 1e9

    torch.testing.assert_close(loss.backward(1.0, on_rows=spoil), untouched, rtol=0, atol=0)
