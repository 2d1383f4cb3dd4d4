"""Rows of an lm_head in a checkpoint: cached in memory up to a limit, otherwise read again.

Between two waves the layers' slots are idle, so rows go there first; the caller limits further memory. On a GPU, rows
without room on the device are cached in main memory and copied from there each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.machine.torch_device import host_bytes, kind_of
from engine.models.checkpoint import Checkpoint
from engine.models.streaming.layer_reader import Slot


class MatrixOnDisk:
    """A matrix of a checkpoint of which some rows are read at a time.

    Args:
        name: the matrix's name in the checkpoint.
        shape: [rows, columns].
        dtype: of the rows that are given out.
        device: of the rows that are given out.
    """

    def __init__(
        self, checkpoint: Checkpoint, name: str, *, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._checkpoint = checkpoint
        self._name = name
        self.shape = shape
        self.dtype = dtype
        self.device = device

    def rows(self, rows: slice) -> Tensor:
        """Read some rows, [number, columns], into memory of their own."""
        found = torch.empty((rows.stop - rows.start, self.shape[1]), dtype=self.dtype)
        self.read(found, rows.start)
        return found.to(self.device)

    def read(self, out: Tensor, first: int) -> None:
        """Read rows into ``out``, [number, columns], from row ``first`` on."""
        self._checkpoint.read(self._name, out, first=first * self.shape[1])


class StreamedRows:
    """A :class:`~engine.models.slices.RowSource` that reads from a checkpoint.

    Args:
        matrix: the rows, and the dtype and device that they are given out in.
        slots: gives the memory on the device that is free until :meth:`forget` is called.
        keep_bytes: most memory on the device for rows beside the slots; None keeps all rows.
        host_bytes: most main memory for rows where the device has another memory; None keeps all rows.
    """

    def __init__(
        self,
        matrix: MatrixOnDisk,
        *,
        slots: Callable[[], Sequence[Slot]],
        keep_bytes: int | None,
        host_bytes: int | None = None,
    ) -> None:
        self._matrix = matrix
        self._columns = matrix.shape[1]
        self._dtype = matrix.dtype
        self._device = matrix.device
        self._find_slots = slots
        self._slots: Sequence[Slot] = ()
        self._is_host = kind_of(matrix.device).is_host
        self._limit = _Limit(keep_bytes)
        # On a GPU only what is in main memory is given up when that is short.
        self._host_limit = _Limit(host_bytes)
        self._kept: dict[int, Tensor] = {}
        self._kept_on_host: dict[int, Tensor] = {}
        self._passing: Tensor | None = None
        self._read_into: Tensor | None = None
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
        rows, is_kept = self._room(end - first)
        if self._is_host:
            self._matrix.read(rows, first)
        else:
            rows.copy_(self._on_host(first, end, is_kept_there=is_kept), non_blocking=True)
        if is_kept:
            self._kept[first] = rows
        return rows

    @property
    def host_bytes(self) -> int:
        """Main memory that kept rows take where the device has another memory."""
        return self._host_limit.taken

    def keep_less(self, on: bool) -> None:
        """Keep no rows in main memory beside the slots from the next :meth:`forget` on, or as many as at first."""
        (self._limit if self._is_host else self._host_limit).is_closed = on

    def forget(self) -> None:
        """Leave the slots to the layers, and give all other memory on the device back.

        Rows in main memory stay, for the next wave asks for the same ones.
        """
        self._kept.clear()
        self._limit.taken = 0
        self._passing = None
        if self._host_limit.is_closed:
            self._kept_on_host.clear()
            self._host_limit.taken = 0
        self._read_into = None
        self._ready = False

    def _room(self, count: int) -> tuple[Tensor, bool]:
        """Memory on the device for some rows, and whether they may stay there."""
        shape = (count, self._columns)
        for slot in self._slots:
            room = slot.cut(shape, self._dtype)
            if room is not None:
                return room, True
        if self._limit.takes(count * self._columns * self._dtype.itemsize):
            return torch.empty(shape, dtype=self._dtype, device=self._device), True
        if self._passing is None or len(self._passing) < count:
            self._passing = torch.empty(shape, dtype=self._dtype, device=self._device)
        return self._passing[:count], False

    def _on_host(self, first: int, end: int, *, is_kept_there: bool) -> Tensor:
        """Some rows in main memory: those that are kept, or read now."""
        if first in self._kept_on_host:
            return self._kept_on_host[first]
        shape = (end - first, self._columns)
        size = (end - first) * self._columns * self._dtype.itemsize
        if not is_kept_there and self._host_limit.takes(size):
            pinned = host_bytes(size, pinned=kind_of(self._device).can_pin)
            rows = self._kept_on_host[first] = pinned.view(self._dtype).view(shape)
        else:
            # Not pinned: a copy from it is over before it is written again.
            if self._read_into is None or len(self._read_into) < end - first:
                self._read_into = torch.empty(shape, dtype=self._dtype)
            rows = self._read_into[: end - first]
        self._matrix.read(rows, first)
        return rows


class _Limit:
    """Bytes that may be taken, and those that were."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self.taken = 0
        self.is_closed = False

    def takes(self, size: int) -> bool:
        """Take so many bytes, where that is allowed."""
        is_allowed = not self.is_closed and (self._most is None or self.taken + size <= self._most)
        self.taken += size * is_allowed
        return is_allowed
