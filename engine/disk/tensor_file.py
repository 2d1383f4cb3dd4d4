"""Writer of safetensors files, one tensor at a time.

safetensors' own writer first copies all tensors of a GPU to main memory, reports a full disk without its error number,
and needs a second read to hash the file. This writer copies tensors one by one and hashes them during the write. The
format is https://huggingface.co/docs/safetensors/index#format; safetensors itself reads the files.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.disk.safetensors_header import safetensors_header

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write the tensors to a new file and flush it to the disk; return its SHA-256 in hex."""
    described = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    return write_pieces(path, described, tensors.values())


def write_pieces(
    path: Path, described: Sequence[tuple[str, torch.dtype, Sequence[int]]], pieces: Iterable[Tensor]
) -> str:
    """Write tensors that need not be in memory as a whole; otherwise as :func:`write_tensors`.

    Args:
        path: the new file.
        described: name, dtype and shape of each tensor.
        pieces: the tensors' content, in the order of ``described``; a tensor may come in several pieces.
    """
    header = safetensors_header(
        (name, _NAMES[dtype], shape, math.prod(shape) * dtype.itemsize) for name, dtype, shape in described
    )
    digest = hashlib.sha256()
    with path.open("xb", buffering=0) as file:
        digest.update(header)
        _write(file.fileno(), memoryview(header))
        for tensor in pieces:
            if tensor.numel():
                array: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                data = memoryview(array)
                digest.update(data)
                _write(file.fileno(), data)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data[: 1 << 28]) :]  # Linux writes at most 2 GiB at once
