"""Rates of this machine: measured once in a separate process, stored in the user's cache folder.

Kept by processor, threads, torch version and device (a GPU by its name and driver), for these decide the rates. This
process never loads torch. Without measurements the plan uses cautious figures and reports it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.disk import places
from engine.disk.files import write_atomic
from engine.errors import DiskFull
from engine.machine import hardware, kernels, safe_child, torch_memory
from engine.machine.compute import compute_environment
from engine.machine.device import Device
from engine.machine.gpu_check import gpu_of, torch_version
from engine.machine.probed_layer import UNDISTURBED_SHARE

_FORMAT = 5
_MOVING = "moving_"
_TIMEOUT_SECONDS = 60
# Until then two runs with the same settings have the same plan, on a busy machine too.
_DISTURBED_FOR_SECONDS = 3600.0


@dataclass(frozen=True)
class MachineRates:
    """Rates of the machine.

    Attributes:
        gemm_flops: floating-point operations of a matrix product, for each of fp32, bf16, fp16 and each of "small" (a
            layer of some million parameters) and "large" (a hidden size of 1,024), as in ``fp32_large``.
        memory_bytes_per_second: read and written by an operation that computes next to nothing.
        seconds_per_operation: what an operation costs that has nothing to do.
        disk_read_bytes_per_second: from the disk itself, not from the page cache.
        measured: whether these are measurements of this machine.
        copy_bytes_per_second: between main memory and a device that has another; 0 where there is none.
        device: that the products were made on.
        moving_seconds: what a layer costs beside its products, for each number that it reads or writes
            (:func:`engine.machine.probed_layer.numbers_moved`), as in ``forward_fp32_small`` and ``learn_bf16_large``.
        torch_seconds: of a processor, for a new process that imports torch.
        device_seconds: until a new process has computed something on a GPU; 0 on the CPU.
    """

    gemm_flops: dict[str, float]
    memory_bytes_per_second: float
    seconds_per_operation: float
    disk_read_bytes_per_second: float
    disk_write_bytes_per_second: float
    measured: bool
    device: str = "cpu"
    copy_bytes_per_second: float = 0.0
    moving_seconds: dict[str, float] = field(default_factory=dict)
    torch_seconds: float = 1.5
    device_seconds: float = 0.0

    def flops_per_second(self, precision: str, size: str = "large") -> float:
        """Return the rate of matrix products in a number format; that of fp32 if the format was not measured."""
        return self.gemm_flops.get(f"{precision}_{size}") or self.gemm_flops[f"fp32_{size}"]

    def seconds_per_number(self, work: str, precision: str, size: str) -> float:
        """Seconds for each number that a layer moves.

        Args:
            work: "forward" or "learn" (one of its three passes).
            precision: of the products.
            size: "small" or "large".
        """
        return self.moving_seconds.get(f"{work}_{precision}_{size}", 4 / self.memory_bytes_per_second)

    def shared(self, processes: int, threads: int, memory_bytes_per_second: float) -> MachineRates:
        """The rates of one of several processes that work at the same time.

        Args:
            processes: how many there are; these rates are those of one of them while it is alone.
            threads: those of all processes together; where there are fewer, the processes take turns.
            memory_bytes_per_second: of all threads together, which the processes share.
        """
        share = min(1.0, threads / processes)
        return replace(
            self,
            gemm_flops={name: share * rate for name, rate in self.gemm_flops.items()},
            memory_bytes_per_second=min(self.memory_bytes_per_second, memory_bytes_per_second / processes),
            disk_read_bytes_per_second=self.disk_read_bytes_per_second / processes,
            seconds_per_operation=self.seconds_per_operation / share,
            moving_seconds={name: seconds / share for name, seconds in self.moving_seconds.items()},
        )


def machine_rates(measure: bool = False, *, device: str = "cpu", threads: int | None = None) -> MachineRates:
    """The rates of this machine.

    Args:
        measure: measure now if there are no stored rates, or only some that are an hour old from a busy machine (about
            six seconds, half of them torch starting); otherwise cautious figures are used.
        device: by its name.
        threads: CPU threads; all usable cores when not set.
    """
    threads = threads or hardware.usable_cores()
    path = kept_at(device, threads)
    kept: MachineRates | None = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        kept = _from_measurements(stored, device)
        if not (measure and _was_disturbed(stored) and time.time() - path.stat().st_mtime > _DISTURBED_FOR_SECONDS):
            return kept
    if measure:
        found = _measure(device, threads, _to_measure(path.parent))
        if found is not None:
            if "import_bytes" in found:
                torch_memory.keep(int(found["import_bytes"]))
            if "half_kernels" in found:
                kernels.keep_half_kernels(bool(found["half_kernels"]))
            with contextlib.suppress(OSError, DiskFull):  # not kept: measured again next time
                write_atomic(path, json.dumps(found, indent=1) + "\n")
            return _from_measurements(found, device)
    return kept or cautious_rates(device, threads)


def kept_at(device: str, threads: int) -> Path:
    """The file that keeps the rates of this machine with so many threads."""
    name, features = hardware.processor()
    gpu = _gpu(device)
    identity = None if gpu is None else (gpu.name, gpu.driver, gpu.capability)
    parts = [_FORMAT, platform.node(), name, features, threads, device, torch_version(), identity]
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()
    return places.cache() / f"machine-{digest}.json"


def _was_disturbed(found: dict[str, float]) -> bool:
    """Whether other programs took so much of the processor that the rates say little about the machine."""
    return found.get("processor_share", 1.0) < UNDISTURBED_SHARE


def _gpu(device: str) -> hardware.Gpu | None:
    if Device.of(device).is_host:
        return None
    return gpu_of(device)


def cautious_rates(device: str, threads: int) -> MachineRates:
    """Return the rates of a slow machine of the kind, for use without measurements."""
    if not Device.of(device).is_host:
        gemm = {f"{kind}_{size}": rate for kind, rate in _SLOW_GPU.items() for size in ("small", "large")}
        return MachineRates(
            gemm, 1.5e11, 8e-6, 5e8, 3e8, False, device, _copy_rate(device), device_seconds=_device_seconds(device)
        )
    # 20 GFLOP/s a core is an AVX2 core at 1 GHz; bf16 is left at fp32's rate or below, so that it is never chosen.
    gemm = {f"fp32_{size}": 2e10 * threads for size in ("small", "large")}
    return MachineRates(gemm, 8e9, 4e-6, 5e8, 3e8, measured=False)


def _copy_rate(device: str) -> float:
    """Of a slow slot (PCIe 3.0 with 8 lanes), where the device has a memory of its own."""
    return 0.0 if Device.of(device).shares_main_memory else 5e9


def _device_seconds(device: str) -> float:
    return 0.0 if Device.of(device).is_host else 3.0


_SLOW_GPU = {"fp32": 3e12, "bf16": 6e12, "fp16": 6e12}


def _from_measurements(found: object, device: str) -> MachineRates:
    if not isinstance(found, dict):
        raise TypeError("these are no measurements")
    gemm = {
        name: float(rate)
        for name, rate in found.items()
        if name.endswith(("_small", "_large")) and not name.startswith(_MOVING)
    }
    if not {"fp32_small", "fp32_large"} <= gemm.keys():
        raise ValueError("these are no measurements")
    return MachineRates(
        gemm_flops=gemm,
        memory_bytes_per_second=float(found["memory_bytes_per_second"]),
        seconds_per_operation=float(found["seconds_per_operation"]),
        # If the page cache cannot be bypassed there is no rate: that of a slow solid-state disk is used.
        disk_read_bytes_per_second=float(found.get("disk_read_bytes_per_second", 5e8)),
        disk_write_bytes_per_second=float(found.get("disk_write_bytes_per_second", 3e8)),
        measured=True,
        device=device,
        copy_bytes_per_second=float(found.get("copy_bytes_per_second", _copy_rate(device))),
        moving_seconds={
            name.removeprefix(_MOVING): float(seconds) for name, seconds in found.items() if name.startswith(_MOVING)
        },
        torch_seconds=float(found.get("torch_seconds", MachineRates.torch_seconds)),
        device_seconds=float(found.get("device_seconds", _device_seconds(device))),
    )


def _measure(device: str, threads: int, folder: Path) -> dict[str, float] | None:
    """Run the probe; None if it fails: a plan without measured rates is better than none."""
    command = safe_child.command("engine.machine.gemm_probe", "--threads", str(threads), "--device", device)
    environment = {
        **safe_child.environment(),
        **compute_environment(threads, keep_memory=True),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    try:
        done = subprocess.run(
            [*command, "--folder", str(folder)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            env=environment,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])  # a library may print before
        _from_measurements(found, device)
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
        return None
    return dict(found)


def _to_measure(folder: Path) -> Path:
    """Return the folder for the disk measurement: that of the stored rates, or that of temporary files."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        with contextlib.suppress(OSError):  # neither can be written: the disk is not measured
            return Path(tempfile.gettempdir())
    return folder
