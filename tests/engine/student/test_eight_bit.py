from __future__ import annotations

import torch

from engine.student.eight_bit import dither, pack_first, pack_second, unpack_first, unpack_second

CPU = torch.device("cpu")


def values(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(50, 256, generator=generator) * torch.logspace(-9, 3, 50)[:, None]


def test_largest_value_of_a_block_is_exact_and_the_others_are_near() -> None:
    first, second = values(), values(1) ** 2
    for original, found in (
        (first, unpack_first(*pack_first(first, dither(1, 256, CPU)))),
        (second, unpack_second(*pack_second(second, dither(1, 256, CPU)))),
    ):
        largest = original.abs().amax(1)
        torch.testing.assert_close(found.abs().amax(1), largest)
        assert ((found - original).abs().amax(1) <= 0.02 * largest).all()
        assert (found.sign() * original.sign() >= 0).all()


def test_rounding_is_right_on_average() -> None:
    first, second = values(), values(1) ** 2
    many = range(400)
    mean_root = sum(unpack_first(*pack_first(first, dither(n, 256, CPU))).abs().sqrt() for n in many) / len(many)
    torch.testing.assert_close(
        mean_root / first.abs().amax(1, keepdim=True).sqrt(),
        first.abs().sqrt() / first.abs().amax(1, keepdim=True).sqrt(),
        rtol=0,
        atol=2.5 / 127 / 20,
    )
    mean_root = sum(unpack_second(*pack_second(second, dither(n, 256, CPU))) ** 0.25 for n in many) / len(many)
    torch.testing.assert_close(
        mean_root / second.amax(1, keepdim=True) ** 0.25,
        (second / second.amax(1, keepdim=True)) ** 0.25,
        rtol=0,
        atol=2.5 / 255 / 20 + 1 / 255,  # and what is below the first step is raised to it
    )


def test_second_moment_is_never_rounded_to_nothing_beside_a_larger_one() -> None:
    block = torch.full((1, 64), 1e-30)
    block[0, 5] = 1.0
    assert (unpack_second(*pack_second(block, dither(3, 64, CPU))) > 0).all()


def test_zeros_stay_zeros() -> None:
    zeros = torch.zeros(2, 64)
    assert not unpack_first(*pack_first(zeros, dither(0, 64, CPU))).any()
    assert not unpack_second(*pack_second(zeros, dither(0, 64, CPU))).any()


def test_rounding_of_an_update_is_the_same_after_a_restart() -> None:
    assert torch.equal(dither(7, 256, CPU), dither(7, 256, CPU))
    assert not torch.equal(dither(7, 256, CPU), dither(8, 256, CPU))
