"""Rounding of trained weights to 16 bits, up or down by chance, so that the mean of the result is the value.

Most changes of a short training are smaller than half of a bfloat16's last digit. Rounded to the nearest, 86 % of
SmolLM2-135M's adapted weights stayed as they were after 4 steps, and with them a third of what had been learned. A
value that the format can hold keeps its bits: a training that changed nothing writes the weights that it began with.
After a long training it makes no difference: the demo's student has a hold-out loss of 3.85591 rounded to the nearest
bfloat16, 3.85592 by chance, 3.85573 in float32.

Source: Gupta et al. 2015, Deep Learning with Limited Numerical Precision, https://arxiv.org/abs/1502.02551, eq. 1.
"""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor, nn

from engine.machine.torch_device import exact

_PIECE_ELEMENTS = 1 << 20
# Digits of a float32's fraction that the format does not have.
_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}


def draws_of(name: str) -> torch.Generator:
    """Return the random draws for a tensor: the same each time that it is written."""
    seed = blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(seed, "little"))


def rounded(values: Tensor, dtype: torch.dtype, draws: torch.Generator) -> Tensor:
    """Round float32 values; to a format that is not one of 16 bits they are converted.

    Args:
        values: float32; overwritten.
        dtype: that they will be stored in.
        draws: see :func:`draws_of`; on the CPU, wherever the values are.
    """
    if dtype not in _DROPPED_BITS:
        return values.to(dtype)
    dropped, format_ = _DROPPED_BITS[dtype], torch.finfo(dtype)
    # Numbers below float16's smallest normal one are all a step of one size apart; bfloat16's smallest is float32's.
    is_tiny = values.abs() < (format_.smallest_normal if dtype == torch.float16 else 0.0)
    step = format_.smallest_normal * format_.eps
    tiny = exact(values[is_tiny]) / step
    is_finite = values.abs() <= format_.max
    bits = values.view(torch.int32)
    bits += torch.randint(0, 1 << dropped, bits.shape, dtype=torch.int32, generator=draws).to(bits.device)
    bits &= -(1 << dropped)
    found = torch.where(is_finite, values.clamp(-format_.max, format_.max), values).to(dtype)
    chance = torch.rand(tiny.shape, dtype=torch.float64, generator=draws).to(tiny.device)
    found[is_tiny] = ((tiny + chance).floor() * step).to(dtype).to(found.device)
    return found


@torch.no_grad()
def round_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Round a model's float32 parameters in place, a piece at a time; they stay float32 and fit the format exactly."""
    if dtype not in _DROPPED_BITS:
        return
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or not parameter.is_contiguous():
            continue
        draws, flat = draws_of(name), parameter.data.view(-1)
        for first in range(0, len(flat), _PIECE_ELEMENTS):
            piece = flat[first : first + _PIECE_ELEMENTS]
            piece.copy_(rounded(piece.clone(), dtype, draws))
