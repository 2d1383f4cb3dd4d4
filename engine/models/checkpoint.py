"""The tensors of a model's files, read with ``pread`` into memory that the caller owns.

A memory-mapped checkpoint counts completely as the process's file pages after one read (measured: 860 MB
for a 221 M-parameter model, against 15 MB here), so a program that promises a small peak must not map it. This file
knows names, offsets and bytes; it does not know what a tensor is for, nor what a model calls it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import ModelError
from engine.model_files.headers import TensorInfo
from engine.model_files.weight_files import read_tensors

_DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

# Conversions go through pieces of this many elements: they stay in the processor's cache, and torch starts its team of
# threads only above 32,768 elements, so a reading thread never competes with the computing one for cores.
_PIECE_ELEMENTS = 32_768

# Numbers that a decoder is asked for at once: its arithmetic has several arrays of that many.
_DECODED_ELEMENTS = 65_536

# Files that stay open between two reads. A model may have more shards than a process may have files open.
_MOST_OPEN = 16


class Checkpoint:
    """All tensors of a model folder's files.

    Only the headers are read at first. Reading is safe from several threads.

    Args:
        folder: the model's folder.

    Raises:
        ModelError: there are no weights, or they are damaged, or a tensor is of a kind that only code can read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = read_tensors(folder)
        self._handles: dict[Path, int] = {}
        self._readers: dict[Path, int] = {}
        self._seek_lock = threading.Lock()
        for name, info in self.tensors.items():
            if info.dtype not in _DTYPES:
                raise ModelError(
                    f"Tensor {name} in {info.file} is stored as {info.dtype}.",
                    "That is a quantized format, which needs code that is not run here.",
                    "Use the model's unquantised weights.",
                )

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's storage format; for a decoded tensor, the format that it would be written in."""
        return _DTYPES[self.tensors[name].dtype]

    def read(self, name: str, out: Tensor, *, first: int = 0) -> None:
        """Read ``out.numel()`` elements of a tensor, from element ``first`` on, converting to ``out``'s dtype.

        Args:
            name: the tensor's name in the file.
            out: contiguous, on the CPU, any dtype that torch converts to; its shape does not matter.
            first: index of the first element in the tensor's flat order.

        Raises:
            ModelError: the file ends before the tensor does.
        """
        stored = self.tensors[name]
        flat = out.view(-1)
        if stored.decoder is not None:
            self._decode(stored, flat, first)
            return
        dtype = self.dtype(name)
        start = stored.offset + first * dtype.itemsize
        if out.dtype == dtype:
            self._fill(stored.file, start, flat)
            return
        piece = torch.empty(min(_PIECE_ELEMENTS, flat.numel()), dtype=dtype)
        for begin in range(0, flat.numel(), _PIECE_ELEMENTS):
            count = min(_PIECE_ELEMENTS, flat.numel() - begin)
            self._fill(stored.file, start + begin * dtype.itemsize, piece[:count])
            flat[begin : begin + count].copy_(piece[:count])

    def _decode(self, stored: TensorInfo, flat: Tensor, first: int) -> None:
        assert stored.decoder is not None
        step = stored.decoder.step
        at_once = max(step, _DECODED_ELEMENTS // step * step)
        for begin in range(0, flat.numel(), at_once):
            count = min(at_once, flat.numel() - begin)
            values = torch.from_numpy(stored.decoder.values(self._bytes, first + begin, count))
            for start in range(0, count, _PIECE_ELEMENTS):
                end = min(start + _PIECE_ELEMENTS, count)
                flat[begin + start : begin + end].copy_(values[start:end])

    def _bytes(self, file: Path, offset: int, count: int) -> NDArray[np.uint8]:
        data = np.empty(count, dtype=np.uint8)
        self._fill(file, offset, torch.from_numpy(data))
        return data

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _fill(self, file: Path, offset: int, flat: Tensor) -> None:
        if flat.numel() == 0:
            return
        target = flat.view(torch.uint8).numpy().data
        with self._opened(file) as handle:
            while target:
                count = self._read_some(handle, target, offset)
                if count == 0:
                    raise ModelError(
                        f"The file {file} is shorter than its header says.",
                        "The download or the copy was cut off.",
                        "Fetch the model again.",
                    )
                target, offset = target[count:], offset + count

    def _read_some(self, handle: int, target: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(handle, [target], offset)
        with self._seek_lock:  # Windows has no pread
            os.lseek(handle, offset, os.SEEK_SET)
            data = os.read(handle, min(len(target), 1 << 24))
        target[: len(data)] = data
        return len(data)

    @contextmanager
    def _opened(self, file: Path) -> Iterator[int]:
        """Return a file's descriptor; unused descriptors are closed, the longest unused first."""
        with self._seek_lock:
            handle = self._handles.pop(file, None)
            if handle is None:
                handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_BINARY", 0))
            self._handles[file] = handle  # now the last of the dictionary
            self._readers[file] = self._readers.get(file, 0) + 1
        try:
            yield handle
        finally:
            with self._seek_lock:
                self._readers[file] -= 1
                unused = [name for name in self._handles if not self._readers[name]]
                for name in unused[: max(0, len(self._handles) - _MOST_OPEN)]:
                    os.close(self._handles.pop(name))
