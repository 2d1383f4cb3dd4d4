"""A rank's part of a tensor that the ranks of a training hold together, and the whole of it piece by piece.

Rows are divided as torch's FSDP2 does: all ranks have the same number, but for the last ones, which may have fewer or
none. Knows nothing of models or of how ranks reach each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Place = slice | tuple[slice, slice]


@runtime_checkable
class Pieces(Protocol):
    """A tensor that is not in memory as a whole."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""

    @property
    def shape(self) -> torch.Size:
        """Of the whole."""

    def pieces(self) -> Iterable[Tensor]:
        """Its elements, in their order."""


Stored = Tensor | Pieces
"""A tensor that can be written to a file."""


@runtime_checkable
class Sliceable(Protocol):
    """A file of whole tensors, of which parts can be read."""

    def part(self, name: str, place: Place) -> Tensor:
        """Some rows (and columns) of a tensor."""


class Part(nn.Parameter):
    """A rank's rows of a parameter.

    Attributes:
        whole: the shape of the parameter.
        rows: which of its rows these are.
    """

    whole: torch.Size
    rows: slice

    @classmethod
    def of(cls, tensor: Tensor, whole: torch.Size, rows: slice) -> Part:
        """The part in ``tensor``, whose memory it shares."""
        part = cls(tensor)
        part.whole, part.rows = whole, rows
        return part


def pieces_of(tensor: Stored) -> Iterable[Tensor]:
    """The elements of a tensor, in their order."""
    return [tensor] if isinstance(tensor, Tensor) else tensor.pieces()


def bytes_of(tensor: Stored) -> int:
    """Bytes of the whole tensor."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of a parameter, or of that which it is a part of."""
    return tensor.whole if isinstance(tensor, Part) else tensor.shape


def own_rows(saved: Mapping[str, Tensor], name: str, tensor: Tensor, *, is_moment: bool = False) -> Tensor:
    """The saved values of a tensor, or of the part of it that this rank has.

    Args:
        saved: whole tensors by name; of a :class:`Sliceable` file only the part is read.
        name: the tensor's name there.
        tensor: the parameter that it belongs to.
        is_moment: moments of a vector are stored as one row.
    """
    if not isinstance(tensor, Part):
        return saved[name]
    place: Place = (slice(None), tensor.rows) if is_moment and len(tensor.whole) < 2 else tensor.rows
    return saved.part(name, place) if isinstance(saved, Sliceable) else saved[name][place]


def rows_of_rank(total: int, rank: int, world: int) -> slice:
    """The rows of a rank, of so many in all."""
    each = -(-total // world)
    return slice(min(rank * each, total), min((rank + 1) * each, total))
