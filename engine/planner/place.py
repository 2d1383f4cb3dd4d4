"""The machine and folder that a run is planned for: what there is, what the run may take, and how fast it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from engine.disk.runs import announced_runs, default_runs_path
from engine.errors import Problem, SettingsError
from engine.machine import hardware as machine_hardware
from engine.machine.gpu_check import checked, torch_version
from engine.machine.hardware import Hardware
from engine.planner.budget import Budget, budget_for
from engine.planner.live_runs import live_runs
from engine.planner.measure import MachineRates, machine_rates
from engine.planner.run_folder import folder_for
from engine.ranks import threads_each
from engine.settings.config import RunConfig


@dataclass(frozen=True)
class Place:
    """Where a run takes place.

    Attributes:
        folder: of the run, and the reason for it.
        hardware: of this machine.
        budget: of the whole run.
        threads: CPU threads of all processes together.
        rates: of one process beside the others.
    """

    folder: Path
    folder_reason: str
    hardware: Hardware
    budget: Budget
    threads: int
    rates: MachineRates

    @classmethod
    def of(cls, config: RunConfig, hardware: Hardware | None, rates: MachineRates | None) -> Place:
        """Return the place for a request.

        Args:
            config: the request.
            hardware: this machine, detected now if not given.
            rates: its rates; stored ones, or cautious figures, if not given or given for another device.

        Raises:
            SettingsError: several processes were asked for on a GPU.
        """
        folder, folder_reason = folder_for(config)
        if hardware is None:
            hardware = machine_hardware.detect(folder)
        if config.device != "cpu":
            hardware = checked(hardware)
        budget = budget_for(config, hardware, live_runs(default_runs_path(), announced_runs()), torch_version())
        threads = config.threads or hardware.cores
        _check_processes(config, budget)
        each = _rates(config.processes, budget, threads, rates)
        return cls(folder, folder_reason, hardware, budget, threads, each)

    def budget_of_each(self, processes: int) -> Budget:
        """The part of the budget that each of several processes may take."""
        if processes == 1:
            return self.budget
        memory, ram = self.budget.memory_bytes // processes, self.budget.ram_bytes // processes
        return replace(self.budget, memory_bytes=memory, ram_bytes=ram)


def _rates(processes: int, budget: Budget, threads: int, given: MachineRates | None) -> MachineRates:
    rates = given
    if rates is None or rates.device != budget.device:
        rates = machine_rates(device=budget.device, threads=threads_each(threads, processes))
    if processes > 1:
        whole = given or machine_rates(device=budget.device, threads=threads)
        rates = rates.shared(processes, threads, whole.memory_bytes_per_second)
    return rates


def _check_processes(config: RunConfig, budget: Budget) -> None:
    """Several ranks compute on processors; on GPUs they have not been tried.

    Raises:
        SettingsError: several were asked for on a GPU.
    """
    if config.processes > 1 and not budget.where.is_host:
        accepted = f"several processes compute on the CPU only; add --device cpu, or use 1 on {budget.device}"
        raise SettingsError([Problem("processes", config.processes, accepted)])
