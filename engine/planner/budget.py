"""Device of a run and its memory budgets, on the device and in main memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import Problem, SettingsError
from engine.format import format_bytes
from engine.machine.device import Device
from engine.machine.hardware import Hardware, memory_note
from engine.planner.footprint import context_bytes_on
from engine.planner.live_runs import LiveRun
from engine.planner.phase_settings import Footprint
from engine.settings.config import RunConfig

# Default share of the free memory that a run may take: the rest is for other programs that start meanwhile.
FREE_SHARE = 0.85


@dataclass(frozen=True)
class Budget:
    """Memory that a phase may take.

    Attributes:
        device: its name.
        memory_bytes: on the compute device, the CUDA context included.
        ram_bytes: in main memory.
        reasons: why, for "device", "memory_budget" and "ram_budget".
        context_bytes: a phase's GPU memory outside of torch's allocator; 0 on the CPU.
    """

    device: str
    memory_bytes: int
    ram_bytes: int
    reasons: dict[str, str]
    context_bytes: int = 0

    @property
    def where(self) -> Device:
        """The compute device."""
        return Device.of(self.device)

    def fits(self, footprint: Footprint) -> bool:
        """Return whether a phase stays within the budget, on the device and in main memory."""
        return self.excess(footprint) <= 0

    def excess(self, footprint: Footprint) -> int:
        """Return the bytes by which a phase exceeds the budget, in the worse of both memories; negative if it fits."""
        on_device = footprint.peak_bytes + self.context_bytes
        over = max(on_device - self.memory_bytes, footprint.needed_bytes - self.ram_bytes)
        if self.where.is_host or not self.where.shares_main_memory:
            return over
        # Device memory is main memory here: both together have no more than the larger budget.
        return max(over, on_device + footprint.needed_bytes - max(self.memory_bytes, self.ram_bytes))


def budget_for(config: RunConfig, hardware: Hardware, others: Sequence[LiveRun], torch_version: str) -> Budget:
    """The budget of a run.

    Args:
        config: device and budgets, if the user set them.
        hardware: this machine.
        others: active runs.
        torch_version: a build for the CPU alone cannot use a GPU.

    Raises:
        SettingsError: the requested GPU does not exist.
    """
    device, device_reason = _device(config, hardware, torch_version)
    reserved = sum(run.reserved_bytes for run in others)
    free = max(0, hardware.available_bytes - reserved)
    ram = int(FREE_SHARE * free)
    left = "that the container's limit leaves free" if hardware.cgroup_limit_bytes else "of free memory"
    ram_reason = f"{FREE_SHARE:.0%} of the {format_bytes(free)} {left}"
    if note := memory_note():
        ram_reason = f"{FREE_SHARE:.0%} of {format_bytes(free)}: {note}"
    if reserved:
        ram_reason += f" beside {format_bytes(reserved)} that {_names(others)} will still take"
    if device == "cpu":
        # There is one memory: a budget for one of them applies to both.
        given = [value for value in (config.memory_budget, config.ram_budget) if value is not None]
        memory = min(given, default=ram)
        same = "on the CPU both budgets are of the same memory"
        reasons = {"memory_budget": same if given else ram_reason, "ram_budget": same if given else ram_reason}
        return Budget(device, memory, memory, {"device": device_reason, **reasons})
    gpu = next(gpu for gpu in hardware.gpus if gpu.device == device)
    taken = sum(run.device_reserved_bytes for run in others if run.device == device)
    free_on_gpu = max(0, min(gpu.free_bytes, gpu.total_bytes - taken))
    context = context_bytes_on(gpu)
    reason = f"{FREE_SHARE:.0%} of the {format_bytes(free_on_gpu)} free on the {gpu.name}"
    whose = "are left for the driver" if gpu.context_bytes is None else "of it are the driver's"
    reason += f"; {format_bytes(context)} {whose}"
    return Budget(
        device,
        config.memory_budget or int(FREE_SHARE * free_on_gpu),
        config.ram_budget or ram,
        {"device": device_reason, "memory_budget": reason, "ram_budget": ram_reason},
        context,
    )


def _device(config: RunConfig, hardware: Hardware, torch_version: str) -> tuple[str, str]:
    if config.device == "cpu":
        return "cpu", ""
    if config.device is not None:
        wished = _named(config.device, hardware)
        unusable = next((gpu for gpu in hardware.gpus if gpu.device == wished and gpu.unusable), None)
        if unusable is not None:
            others = [f"{gpu.device} ({gpu.name})" for gpu in hardware.gpus if not gpu.unusable]
            use = f"use {', '.join(others)} or cpu" if others else "use cpu"
            reason = f"the {unusable.name} cannot be used: {unusable.unusable}; {use}"
            raise SettingsError([Problem("device", config.device, reason)])
        if all(gpu.device != wished for gpu in hardware.gpus):
            there = ", ".join(f"{gpu.device} ({gpu.name})" for gpu in hardware.gpus)
            accepted = f"there is {there} and cpu" if there else f"there is no GPU ({hardware.gpu_note}); use cpu"
            raise SettingsError([Problem("device", config.device, accepted)])
        return wished, ""
    if not hardware.gpus:
        return "cpu", f"no GPU: {hardware.gpu_note}"
    if torch_version.endswith("+cpu"):
        return "cpu", f"the installed torch ({torch_version}) is built for the CPU alone"
    usable = [gpu for gpu in hardware.gpus if not gpu.unusable]
    if not usable:
        return "cpu", "; ".join(f"the {gpu.name} cannot be used: {gpu.unusable}" for gpu in hardware.gpus)
    best = max(usable, key=lambda gpu: gpu.free_bytes)
    return best.device, f"{best.name} has most free memory: {format_bytes(best.free_bytes)}"


def _named(device: str, hardware: Hardware) -> str:
    """The device of a name; of a kind alone the GPU with most free memory among those of it that can be used."""
    kind = Device.of(device).kind
    gpus = [gpu for gpu in hardware.gpus if gpu.kind == kind]
    gpus = [gpu for gpu in gpus if not gpu.unusable] or gpus
    if ":" in device or not gpus:
        return str(Device.of(device))
    return max(gpus, key=lambda gpu: gpu.free_bytes).device


def _names(runs: Sequence[LiveRun]) -> str:
    names = [run.name for run in runs if run.reserved_bytes]
    return names[0] if len(names) == 1 else f"{len(names)} other runs"
