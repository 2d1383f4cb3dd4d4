"""Hidden states of micro-batches that wait, in place or moved out of the compute device's memory.

The frame of a waiting forward pass holds its tensor, so the tensor cannot go away; its bytes can. They are written out,
the tensor's storage is resized to nothing, and before the frame continues it is resized back and filled. (PyTorch's
FSDP frees its gathered parameters the same way.)

From a GPU the bytes move to main memory, from main memory to an unnamed temporary file.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from engine.machine.torch_device import host_bytes, kind_of


class HiddenStore:
    """Where waiting hidden states are.

    Args:
        limit_bytes: hidden states up to this size in total stay where they are; None keeps all of them.
        folder: for the temporary file; None moves out to main memory.

    Attributes:
        limit_bytes: may be changed at any time; it counts for what begins to wait.
        moved_bytes: moved out so far.
    """

    def __init__(self, *, limit_bytes: int | None = None, folder: Path | None = None) -> None:
        self.limit_bytes = limit_bytes
        self._folder = folder
        self._file: int | None = None
        self._file_end = 0
        self._kept: dict[int, int] = {}
        self._places: dict[tuple[int, int], tuple[int, int]] = {}
        self._out: dict[int, list[tuple[Tensor, Tensor | None]]] = {}
        self.moved_bytes = 0

    def put(self, place: int, tensors: Sequence[Tensor]) -> None:
        """Micro-batch ``place`` begins to wait, and these are the tensors that its frames keep."""
        size = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
        if self.limit_bytes is None or sum(self._kept.values()) - self._kept.get(place, 0) + size <= self.limit_bytes:
            self._kept[place] = size
            return
        self._kept.pop(place, None)
        self._out[place] = []
        for number, tensor in enumerate(tensors):
            copy = None
            if self._folder is None:
                storage = tensor.untyped_storage()
                copy = host_bytes(storage.nbytes(), pinned=kind_of(tensor.device).can_pin)
                copy.untyped_storage().copy_(storage)
            else:
                self._write((place, number), tensor)
            tensor.untyped_storage().resize_(0)
            self._out[place].append((tensor, copy))
        self.moved_bytes += size

    def get(self, place: int) -> None:
        """Micro-batch ``place`` continues: its tensors are whole again when this returns."""
        for number, (tensor, copy) in enumerate(self._out.pop(place, [])):
            storage = tensor.untyped_storage()
            if copy is not None:
                storage.resize_(copy.numel())
                storage.copy_(copy.untyped_storage())
            else:
                storage.resize_(self._places[place, number][1])
                self._read((place, number), tensor)

    def close(self) -> None:
        """Forget everything and remove the file."""
        self._kept.clear()
        self._out.clear()
        self._places.clear()
        self._file_end = 0
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, place: tuple[int, int], tensor: Tensor) -> None:
        if self._file is None:
            with tempfile.TemporaryFile(dir=self._folder, prefix="hidden-states-") as stream:
                self._file = os.dup(stream.fileno())  # unnamed: it is gone when this process is
        memory = _memory(tensor)
        if place not in self._places or self._places[place][1] != len(memory):
            self._places[place] = (self._file_end, len(memory))
            self._file_end += len(memory)
        offset = self._places[place][0]
        while memory:
            count = os.pwrite(self._file, memory, offset)
            memory, offset = memory[count:], offset + count

    def _read(self, place: tuple[int, int], tensor: Tensor) -> None:
        assert self._file is not None
        memory, offset = _memory(tensor), self._places[place][0]
        while memory:
            count = os.preadv(self._file, [memory], offset)
            if count == 0:
                raise OSError(f"the temporary file of hidden states in {self._folder} ended too early")
            memory, offset = memory[count:], offset + count


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's storage; ``.numpy()`` would pin the storage to its size."""
    storage = tensor.untyped_storage()
    return memoryview((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())).cast("B")
