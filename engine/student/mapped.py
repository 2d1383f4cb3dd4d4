"""Tensors in mapped files: the system keeps used pages in memory and writes others to the disk when memory is short.

A student of 70 million parameters has 400 MiB of weights and moments, and a step needs one layer of them at a time.
Mapped weights are part of the system's file cache: the system frees their pages when memory is short.

The file is unlinked after mapping, so it disappears with the process. Its space is allocated before mapping: a full
disk is then an error message and not a crash in mid-step.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from engine.disk.files import NO_ROOM, no_room

# Smaller tensors stay in memory: a file takes whole pages, and many small ones gain nothing.
SMALLEST_BYTES = 2**18


def mapped_zeros(folder: Path, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros in a file in ``folder``.

    Raises:
        DiskFull: no room for it.
    """
    shape = tuple(shape)
    numel = torch.Size(shape).numel()
    num_bytes = numel * torch.empty((), dtype=dtype).element_size()
    folder.mkdir(exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix="mapped-", suffix=".tmp", dir=folder)
    try:
        if num_bytes:
            os.posix_fallocate(descriptor, 0, num_bytes)
        return torch.from_file(name, shared=True, size=numel, dtype=dtype).view(shape)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        what = f"There was no room for {num_bytes:,} bytes in {folder}; {shutil.disk_usage(folder).free:,} are free."
        kept = "the student's weights and moments are kept there with --cpu_offload, and its weights with "
        kept += "--student_sharded, while they are divided"
        raise no_room(what, error, kept=kept) from error
    finally:
        os.close(descriptor)
        os.unlink(name)


def weights_in_files(folder: Path) -> Callable[[torch.Size, torch.dtype], Tensor]:
    """Return an allocator of a model's weights: large ones are kept in files in ``folder``, small ones in memory.

    Raises:
        DiskFull: (from the returned function) no room for a weight.
    """
    for left_behind in folder.glob("mapped-*.tmp"):  # a kill between making a file and taking its name away
        left_behind.unlink(missing_ok=True)

    def new_tensor(shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if shape.numel() * dtype.itemsize >= SMALLEST_BYTES:
            return mapped_zeros(folder, shape, dtype)
        return torch.empty(shape, dtype=dtype)

    return new_tensor
