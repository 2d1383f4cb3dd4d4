"""Weights that hold NaN or infinity: found when they are read, not after hours of scoring or training.

A damaged download or a training that diverged leaves such weights, and nothing in a file's header tells of them. The
look costs less than reading the file does. Knows nothing of what a weight is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.machine.torch_device import kind_of
from engine.models.checkpoint import Checkpoint

# torch starts its team of threads only above this, so a reading thread never competes with the computing one for cores.
_PIECE_ELEMENTS = 32_768

_READ_ELEMENTS = 4 * 2**20


def check_numbers(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Refuse weights that hold NaN or infinity.

    Args:
        weights: tensors by name; those of whole numbers are passed over.
        folder: the model's, for the message.

    Raises:
        ModelError: one does; the message names it.
    """
    for name, tensor in weights:
        if not _is_finite(tensor):
            hint = "" if tensor.element_size() > 2 else "In half precision, large weights become infinity: try "
            raise ModelError(
                f"The weight {name} in {folder} holds NaN or infinity.",
                "Nothing can be computed or learned with such weights.",
                f"{hint}{'--precision fp32; or s' if hint else 'S'}ave or download the model again.",
            )


def check_files(folder: Path, names: Iterable[str], *, safe_point: Callable[[], None]) -> None:
    """Look through the files of a model before it is needed, some megabytes at a time.

    Args:
        folder: the model's.
        names: of its weights in the files.
        safe_point: called between two pieces; it may stop the look.

    Raises:
        ModelError: a weight holds NaN or infinity.
    """
    checkpoint = Checkpoint(folder)
    try:
        for name in names:
            total = checkpoint.tensors[name].numel
            room = torch.empty(min(total, _READ_ELEMENTS), dtype=checkpoint.dtype(name))
            for first in range(0, total, _READ_ELEMENTS):
                safe_point()
                piece = room[: min(_READ_ELEMENTS, total - first)]
                checkpoint.read(name, piece, first=first)
                check_numbers([(name, piece)], folder)
    finally:
        checkpoint.close()


@torch.no_grad()
def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.element_size() < 2 or not tensor.numel():
        return True
    flat = tensor.detach().reshape(-1)
    for piece in flat.split(_PIECE_ELEMENTS) if kind_of(tensor.device).is_host else (flat,):
        if not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(piece)):
            return False
    return True
