from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from engine.machine.device import CPU
from engine.student import optimizer as module
from engine.student.optimizer import BETAS, EPSILON, AdamW


class Matrices(nn.Module):
    """Something of each kind: a large matrix, an odd one, a vector, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator))

        self.large, self.odd, self.vector = parameter(40, 256), parameter(123, 507), parameter(33)
        self.kernel = parameter(8, 4, 64)


def gradients(model: nn.Module, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def train(model: nn.Module, optimizer: AdamW, steps: range) -> None:
    for step in steps:
        optimizer.begin_step(0.01 * (step + 1))
        for name, gradient in gradients(model, step).items():
            optimizer.parameters[name].grad = gradient
        optimizer.step()


def by_hand(model: nn.Module, steps: int, weight_decay: float) -> dict[str, Tensor]:
    """AdamW from the paper, in float64."""
    found = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().double().clone()
        first, second = torch.zeros_like(weight), torch.zeros_like(weight)
        for step in range(steps):
            rate, gradient = 0.01 * (step + 1), gradients(model, step)[name].double()
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
            corrected = first / (1 - BETAS[0] ** (step + 1)), second / (1 - BETAS[1] ** (step + 1))
            weight = weight - rate * weight_decay * weight * (weight.dim() >= 2)
            weight = weight - rate * corrected[0] / (corrected[1].sqrt() + EPSILON)
        found[name] = weight
    return found


def test_thirty_two_bits_are_adamw_as_published_and_vectors_do_not_decay() -> None:
    model = Matrices()
    expected = by_hand(model, 5, 0.1)
    train(model, AdamW(model.named_parameters(), weight_decay=0.1), range(5))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_eight_bits_follow_closely_in_a_quarter_of_the_memory() -> None:
    model = Matrices()
    expected, start = by_hand(model, 20, 0.1), {n: p.detach().double().clone() for n, p in model.named_parameters()}
    optimizer = AdamW(model.named_parameters(), weight_decay=0.1, bits=8)
    train(model, optimizer, range(20))
    moved = torch.cat([(expected[n] - start[n]).flatten() for n in expected])
    error = torch.cat([(p.detach().double() - expected[n]).flatten() for n, p in model.named_parameters()])
    assert error.norm() < 0.02 * moved.norm()
    held = sum(part.nbytes for key, part in optimizer.state().items() if key.startswith("large/"))
    assert held == model.large.numel() * 2 + 2 * 4 * model.large.numel() // 256
    assert all(part.dtype == torch.float32 for key, part in optimizer.state().items() if key.startswith("odd/"))


@pytest.mark.parametrize("bits", [32, 8])
def test_pieces_give_what_the_whole_gives(bits: Literal[32, 8], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = Matrices(), Matrices()
    train(whole, AdamW(whole.named_parameters(), weight_decay=0.1, bits=bits), range(4))
    monkeypatch.setattr(module, "kind_of", lambda _: replace(CPU, piece_elements=600))
    train(pieces, AdamW(pieces.named_parameters(), weight_decay=0.1, bits=bits), range(4))
    torch.testing.assert_close(pieces.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [32, 8])
def test_row_after_row_gives_what_the_whole_gives(bits: Literal[32, 8]) -> None:
    whole, rows = Matrices(), Matrices()
    train(whole, AdamW(whole.named_parameters(), weight_decay=0.1, bits=bits), range(4))
    optimizer = AdamW(rows.named_parameters(), weight_decay=0.1, bits=bits)
    for step in range(4):
        optimizer.begin_step(0.01 * (step + 1))
        for name, gradient in gradients(rows, step).items():
            if name == "large":
                for first in range(0, 40, 7):
                    some = slice(first, min(first + 7, 40))
                    optimizer.update(name, gradient[some], some)
            elif name == "odd":
                order = torch.randperm(123, generator=torch.Generator().manual_seed(step))
                optimizer.update(name, gradient[order], order)
            else:
                optimizer.update(name, gradient)
    torch.testing.assert_close(rows.state_dict(), whole.state_dict(), rtol=0, atol=1e-7)


def test_rows_that_are_not_named_stay_as_they_are() -> None:
    model = Matrices()
    before = model.large.detach().clone()
    optimizer = AdamW(model.named_parameters(), weight_decay=0.1, bits=8)
    optimizer.begin_step(0.1)
    optimizer.update("large", torch.ones(2, 256), torch.tensor([3, 30]))
    changed = (model.large != before).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == [3, 30]


@pytest.mark.parametrize("bits", [32, 8])
def test_state_that_is_loaded_continues_as_if_never_put_down(bits: Literal[32, 8]) -> None:
    through, broken = Matrices(), Matrices()
    train(through, AdamW(through.named_parameters(), weight_decay=0.1, bits=bits), range(6))
    first = AdamW(broken.named_parameters(), weight_decay=0.1, bits=bits)
    train(broken, first, range(3))
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    second = AdamW(broken.named_parameters(), weight_decay=0.1, bits=bits)
    second.load_state(first.updates, state)
    train(broken, second, range(3, 6))
    torch.testing.assert_close(broken.state_dict(), through.state_dict(), rtol=0, atol=0)


def test_parameters_without_gradient_are_left_alone() -> None:
    model = Matrices()
    model.odd.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = AdamW(model.named_parameters(), weight_decay=0.1)
    optimizer.begin_step(0.1)
    model.large.grad = torch.ones_like(model.large)
    optimizer.step()
    assert "odd" not in optimizer.parameters
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["large"]
    assert model.large.grad is None


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("rows", [None, torch.tensor([1, 5])])
def test_an_update_that_is_skipped_leaves_weights_and_moments_as_they_are(bits, rows):
    parameter = torch.nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    optimizer = AdamW([("weight", parameter)], weight_decay=0.1, bits=bits)
    shape = (64, 64) if rows is None else (2, 64)
    optimizer.begin_step(1e-2)
    optimizer.update("weight", torch.ones(shape), rows, skip=torch.tensor(0.0))
    before = parameter.detach().clone(), {name: part.clone() for name, part in optimizer.state().items()}
    assert before[1]["weight/first"].any()
    optimizer.begin_step(1e-2)
    optimizer.update("weight", torch.full(shape, torch.nan), rows, skip=torch.tensor(1.0))
    assert torch.equal(parameter, before[0])
    assert all(torch.equal(part, before[1][name]) for name, part in optimizer.state().items())
