"""A device as torch knows it: its memory, streams, generators. The one place that names torch's device modules.

``torch.get_device_module`` gives CUDA's (ROCm's is the same), XPU's and MPS's functions, which have the same names for
the same things but for MPS's memory. device.py lists the abilities of each kind of device.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from engine.machine.device import Device

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""torch's dtype of each ``--precision``."""


@functools.cache
def kind_of(device: torch.device) -> Device:
    """Abilities of a torch device."""
    return Device.of(str(device))


def is_there(device: torch.device) -> bool:
    """Return whether torch can compute on it in this process."""
    kind = kind_of(device)
    return kind.is_host or (_module(device).is_available() and kind.index < _module(device).device_count())


def count(device: torch.device) -> int:
    """How many devices of its kind there are."""
    return int(_module(device).device_count())


def name_of(device: torch.device) -> str:
    """Return the product name, if torch knows it."""
    name = getattr(_module(device), "get_device_name", None)
    return str(name(device)) if name is not None else "Apple GPU"


def select(device: torch.device) -> None:
    """Make it the device that torch's own functions mean; there is but one of MPS."""
    if kind_of(device).has_streams:
        _module(device).set_device(device)


def synchronize(device: torch.device) -> None:
    """Wait until everything that was launched is done."""
    kind = kind_of(device)
    if kind.is_host:
        return
    if kind.has_streams:
        _module(device).synchronize(device)
    else:
        _module(device).synchronize()


def wait_for_compute(device: torch.device) -> None:
    """Wait for what was launched to compute, not for copies beside it."""
    if kind_of(device).has_streams:
        _module(device).current_stream(device).synchronize()
    else:
        synchronize(device)


class CopyStream:
    """Copies beside the computation; on a device without streams they take their turn.

    Args:
        device: whose.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _module(device).Stream(device) if kind_of(device).has_streams else None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """While this is open, this thread launches into the stream."""
        if self._stream is None:
            yield
        else:
            with _module(self._device).stream(self._stream):
                yield

    def after_compute(self) -> None:
        """Let what comes into the stream from here on wait for what was launched to compute so far."""
        if self._stream is not None:
            self._stream.wait_stream(_module(self._device).current_stream(self._device))

    def synchronize(self) -> None:
        """Wait for the copies."""
        if self._stream is None:
            synchronize(self._device)
        else:
            self._stream.synchronize()


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes that are free, and bytes in all. MPS recommends how much of main memory its programs take."""
    if kind_of(device).kind == "mps":
        total = int(torch.mps.recommended_max_memory())
        return max(0, total - int(torch.mps.driver_allocated_memory())), total
    free, total = _module(device).mem_get_info(device)
    return int(free), int(total)


def reserved_bytes(device: torch.device) -> int:
    """Memory that torch's allocator holds there."""
    if kind_of(device).kind == "mps":
        return int(torch.mps.driver_allocated_memory())
    return int(_module(device).memory_reserved(device))


def peak_reserved_bytes(device: torch.device) -> int:
    """The most that torch's allocator held; MPS keeps its memory and reports no peak."""
    if kind_of(device).kind == "mps":
        return reserved_bytes(device)
    return int(_module(device).max_memory_reserved(device))


def limit_memory(device: torch.device, share: float) -> None:
    """Let the allocator take at most this share of the device's memory, where this version of torch can.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.cuda.memory.set_per_process_memory_fraction.html
    """
    limit = getattr(_module(device), "set_per_process_memory_fraction", None)
    if limit is None:  # XPU before torch 2.9
        return
    if kind_of(device).has_streams:
        limit(share, device)
    else:
        limit(share)


def host_bytes(size: int, *, pinned: bool) -> Tensor:
    """Uninitialised main memory, uint8 [size]; pinned where that is asked for and the system has such memory left.

    Pinned memory is limited under WSL and by ``ulimit -l``, and CUDA reports that limit as a lack of GPU memory. Copies
    from other memory are slower, and nothing else.
    """
    if pinned and size:
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            pass
    return torch.empty(size, dtype=torch.uint8)


@functools.cache
def sums_halves_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of two matrices in half precision can be had in float32, as it was summed. Tried once."""
    if kind_of(device).is_host or dtype not in (torch.float16, torch.bfloat16):
        return False
    try:
        ones = torch.ones((16, 16), dtype=dtype, device=device)
        return bool(torch.mm(ones, ones, out_dtype=torch.float32).dtype == torch.float32)
    except (TypeError, RuntimeError):  # torch before 2.8, or a device without such a kernel
        return False


def exact(tensor: Tensor) -> Tensor:
    """The numbers in float64: where they are, or on the CPU where the device has no float64 (MPS).

    Draws and sums of them are then the same to the last bit, wherever the numbers came from.
    """
    return (tensor if kind_of(tensor.device).has_float64 else tensor.cpu()).double()


def exact_sum(tensor: Tensor) -> Tensor:
    """The sum in float64, a scalar where :func:`exact` would put the numbers."""
    return (tensor if kind_of(tensor.device).has_float64 else tensor.cpu()).sum(dtype=torch.float64)


def exact_home(device: torch.device) -> torch.device:
    """Where :func:`exact` puts numbers of this device."""
    return device if kind_of(device).has_float64 else torch.device("cpu")


def generator_states() -> dict[str, Tensor]:
    """The state of every random number generator of torch that was used, by device."""
    found = {"cpu": torch.get_rng_state()}
    device = _accelerator()
    if device is None or not _is_started(device):
        return found
    if not kind_of(device).has_streams:
        return found | {str(kind_of(device)): _module(device).get_rng_state()}
    states = enumerate(_module(device).get_rng_state_all())
    return found | {f"{device.type}:{index}": state for index, state in states}


def restore_generators(saved: Mapping[str, Tensor]) -> None:
    """Put the generators back to where :func:`generator_states` found them; devices that are not here are left out."""
    torch.set_rng_state(saved["cpu"])
    device = _accelerator()
    if device is None:
        return
    if not kind_of(device).has_streams:
        if (name := str(kind_of(device))) in saved:
            _module(device).set_rng_state(saved[name])
        return
    for index in range(_module(device).device_count()):
        if f"{device.type}:{index}" in saved:
            _module(device).set_rng_state(saved[f"{device.type}:{index}"], index)


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def _is_started(device: torch.device) -> bool:
    is_started = getattr(_module(device), "is_initialized", None)
    return is_started is None or bool(is_started())


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device)
