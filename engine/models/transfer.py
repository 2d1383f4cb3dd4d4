"""Tensors between main memory and a GPU, many in one copy.

Each copy costs a launch, and one from or to memory that is not pinned makes the CPU wait for the GPU as well. So what
goes together is laid in one piece of memory first. On the CPU nothing is copied at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.machine.torch_device import host_bytes, kind_of

_ALIGN = 64  # bytes; a piece of memory can be seen as any dtype from such places on


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The same tensors on a device, in one copy that the CPU does not wait for.

    Args:
        tensors: on the CPU, any dtypes and shapes.
        device: where they shall be; on the CPU they are given back as they are, and so is
            float64 for a device that has none.
    """
    kind = kind_of(device)
    if kind.is_host:
        return list(tensors)
    if not kind.has_float64 and any(tensor.dtype == torch.float64 for tensor in tensors):
        others = iter(to_device([tensor for tensor in tensors if tensor.dtype != torch.float64], device))
        return [tensor if tensor.dtype == torch.float64 else next(others) for tensor in tensors]
    starts, size = [], 0
    for tensor in tensors:
        starts.append(size)
        size += -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN
    packed = host_bytes(size, pinned=kind.can_pin)
    for tensor, start in zip(tensors, starts, strict=True):
        _seen_as(packed, start, tensor).copy_(tensor)
    # torch's allocator of pinned memory gives a block away again only after the copies from it are done.
    moved = packed.to(device, non_blocking=True)
    return [_seen_as(moved, start, tensor) for tensor, start in zip(tensors, starts, strict=True)]


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors in main memory, in one copy that the CPU waits for; those on the CPU as they are."""
    if not tensors or kind_of(tensors[0].device).is_host:
        return list(tensors)
    # Larger elements first, so that each dtype begins at a multiple of its size.
    order = sorted(range(len(tensors)), key=lambda place: -tensors[place].element_size())
    packed = torch.cat([tensors[place].contiguous().view(-1).view(torch.uint8) for place in order]).cpu()
    found: dict[int, Tensor] = {}
    start = 0
    for place in order:
        found[place] = _seen_as(packed, start, tensors[place])
        start += tensors[place].numel() * tensors[place].element_size()
    return [found[place] for place in range(len(tensors))]


def _seen_as(packed: Tensor, start: int, like: Tensor) -> Tensor:
    part = packed[start : start + like.numel() * like.element_size()]
    return part.view(like.dtype).view(like.shape)
