"""Abilities of a device and its preferred amount of work: one value for planner, models and training.

A device is named as torch names it: ``cpu``, ``cuda:0`` (NVIDIA, and AMD with a ROCm build of torch), ``xpu:0`` (Intel)
or ``mps`` (Apple). This file never imports torch; torch_device.py beside it asks the device itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MIB = 2**20
_NAME = re.compile(r"cpu|mps(:0)?|(cuda|xpu)(:\d+)?")

NAMES = "cpu, cuda, cuda:N, xpu, xpu:N or mps"
"""The names that ``--device`` takes, for messages."""


NVIDIA = "cuda"
"""The kind of device that NVIDIA's management library lists."""


@dataclass(frozen=True)
class Device:
    """A device by its name, with what is true of its kind.

    Attributes:
        kind: torch's device type.
        index: among the devices of its kind.
        shares_main_memory: its memory is part of main memory.
        has_float64: torch has float64 there.
        has_sparse: torch has sparse gradients there.
        can_pin: copies from pinned main memory run while the CPU works.
        has_streams: copies and computation can run at the same time.
        formats: number formats of matrix products that may be faster than fp32 there.
        block_bytes: of a block of logits; what fills the device, or what fits into a processor's caches.
        fewest_rows, most_rows: of a matrix product in the head.
        waiting_bytes: of gradients of the student's logits that wait in half precision for the products of the backward
            pass. A product in half precision cannot be added to a float32 gradient in place, so that the whole gradient
            of the head is read and written each time: in chunks of 85 of 1,016 positions that took longer than the
            products (49,152 ids: 2.5 s of a processor for the backward pass of the head, 1.2 s in chunks of 256).
        wave_factor: how many times larger a wave is than on a CPU.
        slice_bytes: of a slice of the head.
        piece_elements: of moments that are unpacked at a time.
        scratch_elements: of a temporary matrix that is made again and again.
        loss_factor: how many times larger a slice of the lean loss is than on a CPU.
        most_tokens: of a micro-batch; beyond them nothing gets faster.
    """

    kind: str = "cpu"
    index: int = 0
    shares_main_memory: bool = True
    has_float64: bool = True
    has_sparse: bool = True
    can_pin: bool = False
    has_streams: bool = False
    formats: tuple[str, ...] = ("bf16",)
    block_bytes: int = 16 * _MIB
    fewest_rows: int = 48
    most_rows: int = 256
    waiting_bytes: int = 48 * _MIB
    wave_factor: int = 1
    slice_bytes: int = 8 * _MIB
    piece_elements: int = 1 << 16
    # Half a MiB, below what the C library asks the system for.
    scratch_elements: int = 1 << 17
    loss_factor: int = 1
    most_tokens: int = 4_096

    @classmethod
    def of(cls, name: str) -> Device:
        """The device of a name such as ``cuda:1``; a kind that is not known is taken for one that can do least."""
        kind, _, index = name.partition(":")
        if kind == "cpu":
            return CPU
        is_apart = kind in ("cuda", "xpu")  # a card, with memory of its own
        return cls(
            kind=kind,
            index=int(index or 0),
            shares_main_memory=not is_apart,
            has_float64=is_apart,
            has_sparse=is_apart,
            can_pin=is_apart,
            has_streams=is_apart,
            formats=("bf16", "fp16"),
            # A kernel costs some microseconds to launch, whatever it does: a GPU wants more work at a time.
            block_bytes=128 * _MIB,
            fewest_rows=96,
            most_rows=1024,
            wave_factor=8,
            slice_bytes=128 * _MIB,
            piece_elements=1 << 22,
            scratch_elements=17 << 20,
            loss_factor=8,
            most_tokens=65_536,
        )

    @property
    def is_host(self) -> bool:
        """Whether it is the CPU: its tensors are in this process's memory, and Python reads them without a copy."""
        return self.kind == "cpu"

    def __str__(self) -> str:
        """Its name, as ``--device`` takes it and torch understands it."""
        return self.kind if self.kind in ("cpu", "mps") else f"{self.kind}:{self.index}"


CPU = Device()


def is_name(text: str) -> bool:
    """Return whether a text names a device."""
    return _NAME.fullmatch(text) is not None
