"""Rows of a head that lies in a checkpoint: kept in memory as far as allowed, read again where not.

Between two waves the layers' slots are idle, so rows go there first; what is kept beyond them is the caller's limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.models.checkpoint import Checkpoint
from engine.models.layer_reader import Slot


class StreamedRows:
    """A :class:`~engine.models.slices.RowSource` that reads from a checkpoint.

    Args:
        name: the matrix's name in the checkpoint.
        columns: of the matrix.
        dtype: of the rows that are given out.
        device: of the rows that are given out.
        slots: gives the main memory that is free until :meth:`forget` is called.
        keep_bytes: most memory for rows beside the slots; None keeps all rows.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        name: str,
        *,
        columns: int,
        dtype: torch.dtype,
        device: torch.device,
        slots: Callable[[], Sequence[Slot]],
        keep_bytes: int | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._name = name
        self._columns = columns
        self._dtype = dtype
        self._device = device
        self._find_slots = slots
        self._slots: Sequence[Slot] = ()
        self._keep_bytes = self._first_keep_bytes = keep_bytes
        self._kept: dict[int, Tensor] = {}
        self._kept_bytes = 0
        self._passing: Tensor | None = None
        self._ready = False

    def rows(self, first: int, end: int) -> Tensor:
        """Rows first to end; the same bounds must be asked for each time. Valid until the next call or ``forget``."""
        if not self._ready:
            self._slots = self._find_slots()
            for slot in self._slots:
                slot.clear()
            self._ready = True
        if first in self._kept:
            return self._kept[first]
        rows, kept = self._room(end - first)
        self._checkpoint.read(self._name, rows, first=first * self._columns)
        rows = rows.to(self._device)
        if kept:
            self._kept[first] = rows
        return rows

    def keep_less(self, on: bool) -> None:
        """Keep no rows beside the slots from the next :meth:`forget` on, or as many as at first."""
        self._keep_bytes = 0 if on else self._first_keep_bytes

    def forget(self) -> None:
        """Leave the slots to the layers, and give all other memory back."""
        self._kept.clear()
        self._kept_bytes = 0
        self._passing = None
        self._ready = False

    def _room(self, count: int) -> tuple[Tensor, bool]:
        shape = (count, self._columns)
        for slot in self._slots:
            room = slot.cut(shape, self._dtype)
            if room is not None:
                return room, True
        size = count * self._columns * self._dtype.itemsize
        if self._keep_bytes is None or self._kept_bytes + size <= self._keep_bytes:
            self._kept_bytes += size
            return torch.empty(shape, dtype=self._dtype), True
        if self._passing is None or len(self._passing) < count:
            self._passing = torch.empty(shape, dtype=self._dtype)
        return self._passing[:count], False
