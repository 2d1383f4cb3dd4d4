"""Setup of a phase's device: number format, threads, and the enforced memory budget."""

from __future__ import annotations

import os

import torch

from engine.errors import RequestError
from engine.jobs import RecordsJob
from engine.machine import process_memory, torch_device
from engine.machine.device import Device
from engine.machine.gpu_check import gpu_of, sees_one
from engine.planner.footprint import CUDA_CONTEXT, context_bytes_on
from engine.ranks import threads_each


def prepare_torch(job: RecordsJob) -> tuple[torch.device, torch.dtype]:
    """Set torch up for a phase.

    On a GPU the budget becomes the process's memory fraction, so that a 2 GB plan runs as on a 2 GB card.

    Returns:
        The device, and the dtype of the matrix products.

    Raises:
        RequestError: the run wants a GPU that torch does not find.
    """
    # The ranks on this machine share the threads.
    torch.set_num_threads(threads_each(job.threads, int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    device = as_seen_here(job.device)
    kind = torch_device.kind_of(device)
    if not kind.is_host:
        if not torch_device.is_there(device):
            raise RequestError(
                f"--device {job.device}: torch finds no such GPU.",
                "This installation of torch was built without support for it, or the driver does not answer.",
                "Use --device cpu, or install a build of torch for your GPU.",
            )
        torch_device.select(device)
        _, total_bytes = torch_device.memory_of(device)
        fraction = allocator_fraction(job.memory_budget, total_bytes, context_bytes(device))
        torch_device.limit_memory(device, fraction)
    return device, torch_device.PRECISIONS[job.precision]


def as_seen_here(device: str) -> torch.device:
    """The device under its number in this process: a GPU that is the only one to be seen is the first."""
    kind = Device.of(device)
    return torch.device(str(Device.of(kind.kind)) if sees_one(kind) else device)


def context_bytes(device: torch.device) -> int:
    """Return this process's GPU memory outside of torch's allocator: as planned, or more if it already holds more."""
    planned = context_bytes_on(gpu_of(str(device)))
    torch.zeros(1, device=device)  # starts the driver
    held = process_memory.device_bytes(os.getpid()) or 0
    return max(planned, held - torch_device.reserved_bytes(device))


def allocator_fraction(budget_bytes: int, total_bytes: int, context: int = CUDA_CONTEXT) -> float:
    """Share of a GPU's memory that torch's allocator may take: the budget counts the CUDA context, the allocator not.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.cuda.memory.set_per_process_memory_fraction.html
    """
    return min(1.0, max(0, budget_bytes - context) / total_bytes)


def device_peak_bytes(device: torch.device) -> int | None:
    """Most memory that the process held on the GPU, context included; None on the CPU.

    torch's allocator knows its own peak. Other memory only grows, so its current size is its size at the peak.
    """
    if torch_device.kind_of(device).is_host:
        return None
    reserved = torch_device.peak_reserved_bytes(device)
    held = process_memory.device_bytes(os.getpid())
    beside = context_bytes_on(gpu_of(str(device))) if held is None else held - torch_device.reserved_bytes(device)
    return reserved + max(0, beside)
