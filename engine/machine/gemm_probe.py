"""Measure how fast this machine multiplies matrices, moves memory and reads the disk; print it as one line of JSON.

It also reports the processor time of the import of torch, the memory of this process right after it (Linux), and
whether oneDNN has kernels for half precision on this processor.

Run in a process of its own, so that the planner and the screens never load torch:

    python -m engine.machine.gemm_probe --threads 2 --device cpu --folder ~/.cache

Takes about three seconds beside the import of torch. It knows nothing of models; measure.py makes rates of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from engine.machine.layer_probe import layer_work
from engine.machine.probed_layer import (
    LENGTH,
    OPERATIONS_PER_LAYER,
    ROWS,
    UNDISTURBED_SHARE,
    WIDTHS,
    inner_size,
    numbers_moved,
    products,
)
from engine.machine.process_memory import memory_of_tree
from engine.machine.products import linear
from engine.machine.torch_device import PRECISIONS, host_bytes, kind_of, synchronize

# Rows, inner and outer size of the products: a layer of a small model, and one of a big one.
_SHAPES = {"small": (512, 256, 1024), "large": (512, 1024, 4096)}
# As many calls as fit into the first time, and at least three where these fit into the second.
_SECONDS_EACH, _FEWEST_CALLS, _MOST_SECONDS = 0.06, 3, 1.0
# Of the processor time of all threads, what these products and layers get where nothing else runs.
_QUIET_SHARE = 0.87
# A GPU is not filled by what fills a CPU core.
_ROWS_ON_A_GPU = 8
_DISK_BYTES = 96 * 2**20


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description="Measure this machine's rates.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    seconds = time.process_time()  # the import of torch, and next to nothing else until here
    imported = {"import_bytes": memory_of_tree(os.getpid())} if sys.platform.startswith("linux") else {}
    torch.set_num_threads(arguments.threads)
    found = {"torch_seconds": seconds} | imported | {"half_kernels": _has_half_kernels()}
    device = torch.device(arguments.device)
    if not kind_of(device).is_host:
        found["device_seconds"] = _device_seconds(device)
    found |= _measured(device, arguments.threads, arguments.folder)
    print(json.dumps(found))  # noqa: T201


def _device_seconds(device: torch.device) -> float:
    """How long a process waits for its first product on a device: the driver and the libraries start."""
    began = time.perf_counter()
    ones = torch.ones(64, 64, device=device)
    torch.mm(ones, ones).sum().item()
    return time.perf_counter() - began


def _has_half_kernels() -> bool:
    """Whether torch has oneDNN multiply in bf16; builds without oneDNN have no such question."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


def _measured(device: torch.device, threads: int, folder: Path) -> dict[str, float]:
    clock = _Clock(device, threads)
    found: dict[str, float] = {}
    formats = {name: PRECISIONS[name] for name in ("fp32", *kind_of(device).formats)}
    best = {
        f"{name}_{size}": (shape, clock.best(_product(shape, dtype, device)))
        for size, shape in _SHAPES.items()
        for name, dtype in formats.items()
    }
    if kind_of(device).is_host:
        found["processor_share"] = clock.share
    clock.is_disturbed = clock.share < UNDISTURBED_SHARE
    found |= {name: _flops(shape, device) / clock.seconds(one) for name, (shape, one) in best.items()}
    found["memory_bytes_per_second"] = _memory_bytes_per_second(clock)
    found["seconds_per_operation"] = _seconds_per_operation(clock)
    for size, hidden in WIDTHS.items():
        for name, dtype in formats.items():
            if found[f"{name}_{size}"] < found[f"fp32_{size}"]:
                continue  # slower than fp32: it is not chosen, and a layer may take seconds
            # Too little memory for a layer, or an operation that the device does not have: the plan counts bytes then.
            with contextlib.suppress(RuntimeError):
                found |= _layer(f"{name}_{size}", hidden, dtype, clock, found)
    if not kind_of(device).shares_main_memory:
        found["copy_bytes_per_second"] = _copy_bytes_per_second(clock)
    return found | _disk(folder)


class _Best(NamedTuple):
    """The shortest of some calls, in seconds on the clock and in seconds of all processors."""

    wall: float
    processor: float


class _Clock:
    """Times work on a device.

    While other programs take turns with the threads, the time on the clock says little about the machine. The time that
    the threads themselves took is then divided by what they get on a quiet machine.

    Attributes:
        is_disturbed: whether other programs take much of the processor.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device = device
        self.is_disturbed = False
        self._threads = threads
        self._began, self._used = time.perf_counter(), time.process_time()

    @property
    def share(self) -> float:
        """Of the processor time of all threads since this was made, what this process got; 1 beside a device."""
        if not kind_of(self.device).is_host:
            return 1.0
        wall = (time.perf_counter() - self._began) * self._threads
        return (time.process_time() - self._used) / wall

    def best(self, work: Callable[[], object]) -> _Best:
        """Time one call: the best of as many as fit into the time, for anything slower was disturbed."""
        work()  # warm-up: code paths are chosen and scratch memory is taken once
        best, calls, began = _Best(math.inf, math.inf), 0, time.perf_counter()
        while not calls or time.perf_counter() - began < (_SECONDS_EACH if calls >= _FEWEST_CALLS else _MOST_SECONDS):
            start, used = time.perf_counter(), time.process_time()
            work()
            synchronize(self.device)
            wall, processor = time.perf_counter() - start, time.process_time() - used
            best, calls = _Best(min(best.wall, wall), min(best.processor, processor)), calls + 1
        return best

    def seconds(self, best: _Best) -> float:
        """Seconds that work of all threads takes on a quiet machine."""
        if not self.is_disturbed:
            return best.wall
        return min(best.wall, best.processor / (self._threads * _QUIET_SHARE))


def _rows_of(device: torch.device, rows: int) -> int:
    return rows if kind_of(device).is_host else rows * _ROWS_ON_A_GPU


def _flops(shape: tuple[int, int, int], device: torch.device) -> float:
    rows, inner, outer = shape
    return 2.0 * _rows_of(device, rows) * inner * outer


def _product(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    rows, inner, outer = shape
    left = torch.randn(_rows_of(device, rows), inner, device=device).to(dtype)
    right = torch.randn(outer, inner, device=device).to(dtype)
    # As a linear layer does it: the weight is [out, in].
    return lambda: linear(left, right)


def _layer(name: str, hidden: int, dtype: torch.dtype, clock: _Clock, found: dict[str, float]) -> dict[str, float]:
    """Seconds for each number that a layer moves, forward and in a training step: the time that is no product's."""
    rows = _rows_of(clock.device, ROWS)
    work = layer_work(hidden, rows, dtype, clock.device)
    moved = rows * LENGTH * numbers_moved(hidden, inner_size(hidden))
    known = rows * LENGTH * products(hidden) / found[name] + OPERATIONS_PER_LAYER * found["seconds_per_operation"]
    # Never less than memory allows: the best of some repetitions was a little quicker than the best product.
    least = 4 / found["memory_bytes_per_second"]
    passes = {"forward": (work.forward, 1), "learn": (work.learn, 3)}
    return {
        f"moving_{kind}_{name}": max(least, (clock.seconds(clock.best(run)) - count * known) / (count * moved))
        for kind, (run, count) in passes.items()
    }


def _memory_bytes_per_second(clock: _Clock) -> float:
    device = clock.device
    block = torch.zeros(8 * 2**20, device=device)  # 32 MiB: more than the caches hold
    target = torch.empty_like(block)
    return 2.0 * block.numel() * 4 / clock.seconds(clock.best(lambda: torch.add(block, 1.0, out=target)))


def _copy_bytes_per_second(clock: _Clock) -> float:
    """From pinned main memory to the device and back."""
    here = host_bytes(32 * 2**20, pinned=kind_of(clock.device).can_pin)
    there = here.to(clock.device)

    def to_and_fro() -> None:
        there.copy_(here, non_blocking=True)
        here.copy_(there, non_blocking=True)

    return 2.0 * here.numel() / clock.best(to_and_fro).wall


def _seconds_per_operation(clock: _Clock) -> float:
    """Measure the cost of an operation with almost no work."""
    tiny = torch.zeros(64, device=clock.device)

    def hundred() -> None:
        for _ in range(100):
            tiny.add(1.0)

    return clock.best(hundred).wall / 100


def _disk(folder: Path) -> dict[str, float]:
    """Rates of writing and of reading again what is no longer in the page cache; nothing where that is not possible."""
    block = os.urandom(2**20)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            descriptor = file.fileno()
            start = time.perf_counter()
            for _ in range(_DISK_BYTES // len(block)):
                os.write(descriptor, block)
            os.fsync(descriptor)
            written = time.perf_counter() - start
            if not hasattr(os, "posix_fadvise"):
                return {"disk_write_bytes_per_second": _DISK_BYTES / written}
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(descriptor, 0, os.SEEK_SET)
            start = time.perf_counter()
            while os.read(descriptor, 4 * 2**20):
                pass
            read = time.perf_counter() - start
    except OSError:  # a full or read-only disk: the plan then says that the rate is not measured
        return {}
    return {"disk_write_bytes_per_second": _DISK_BYTES / written, "disk_read_bytes_per_second": _DISK_BYTES / read}


if __name__ == "__main__":
    main()
