"""The process of a job, watched to its end: its memory is sampled, requests reach it, and its end is reported.

Its consequence for the run is decided elsewhere (:mod:`engine.run.walk`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.channel.events import EventWriter
from engine.format import format_bytes
from engine.jobs import Job, RecordsJob
from engine.machine import hardware, process_memory
from engine.ranks import Rank
from engine.run.child import Child, Usage
from engine.run.control import RunControl
from engine.run.crew import Crew
from engine.run.folder import Run
from engine.run.phase_start import PhaseStarter

_LAST_WORDS_BYTES = 4096
_POLL_SECONDS = 0.1  # how often memory and control are looked at
_MEMORY_EVENT_SECONDS = 2.0  # the promise is 5: readers distinguish "slow" from "dead" by it


@dataclass(frozen=True)
class Ending:
    """The end of a job's process.

    Attributes:
        code: its exit code; the number of a signal that ended it is negative.
        last_words: the end of what it wrote.
        silent: ranks that did not end by themselves after another one had failed.
    """

    code: int
    last_words: str = ""
    silent: tuple[int, ...] = ()


class PhaseWatch:
    """Runs the processes of jobs and watches them.

    Args:
        run: whose jobs.
        events: receives a job's begin, memory and end.
        control: requests to the run.
        starter: starts the processes.
    """

    def __init__(self, run: Run, events: EventWriter, control: RunControl, starter: PhaseStarter) -> None:
        self._run = run
        self._events = events
        self._control = control
        self._starter = starter

    def run_job(self, job: Job) -> Ending:
        """Run a job's processes to their end.

        Raises:
            FolderGone: the run's folder is not there any more; the processes were ended.
        """
        self._run.sweep()  # no job runs, so partial files belong to a killed one
        self._events.write("phase_started", phase=job.name)
        began = time.monotonic()
        code, peak_bytes, usage = 0, 0, Usage()
        silent: tuple[int, ...] = ()
        with self._run.log_path.open("ab") as log:
            said_from = log.seek(0, os.SEEK_END)
            for crew in self._starter.crews(job):
                code, most_bytes, spent, silent = self._run_crew(job, crew, log)
                peak_bytes, usage = max(peak_bytes, most_bytes), usage + spent
                if code != 0:
                    break
        if code == 0:
            self._events.write(
                "phase_finished",
                phase=job.name,
                seconds=round(time.monotonic() - began, 3),
                peak_bytes=peak_bytes,
                **self._on_device(job),
                user_seconds=round(usage.user_seconds, 2),
                system_seconds=round(usage.system_seconds, 2),
                minor_faults=usage.minor_faults,
            )
        return Ending(code, _end_of(self._run.log_path, said_from), silent)

    def _run_crew(self, job: Job, crew: list[Rank], log: IO[bytes]) -> tuple[int, int, Usage, tuple[int, ...]]:
        """Run the processes of a job to their end.

        Returns:
            The exit code, the peak of their memory, their usage, and the ranks that were silent.
        """
        with self._starter.started(job, crew, log) as child, self._control.sending_to(child):
            try:
                peak_bytes = self._watch(job, child)
            finally:
                if child.poll() is None:
                    child.kill()
                code = child.wait()
        return code, peak_bytes, child.usage, tuple(child.silent) if isinstance(child, Crew) else ()

    def _watch(self, job: Job, child: Child | Crew) -> int:
        """Sample memory and obey control until the child ends; returns the peak of its anonymous memory.

        The memory of several ranks is their sum.

        Raises:
            FolderGone: the run's folder is not there any more: all further work would be lost.
        """
        budget = job.memory_budget if job.where.is_host else job.ram_budget  # of main memory, which is looked at here
        on_device = _computes_on(job)
        peak_bytes = device_peak_bytes = 0
        is_over = False
        next_event = 0.0
        while True:
            pids = _pids(child)
            each = {rank: process_memory.memory_of_tree(pid) for rank, pid in pids.items()}
            each |= child.elsewhere if isinstance(child, Crew) else {}
            used = sum(each.values())
            peak_bytes = max(peak_bytes, used)
            if used > budget and not is_over:
                is_over = True
                self._events.log("warning", _over_budget(job.name, used, budget), "over-budget")
            ended = child.poll() is not None
            if (gone := self._run.vanished()) is not None:
                raise gone
            if ended or time.monotonic() >= next_event:
                next_event = time.monotonic() + _MEMORY_EVENT_SECONDS
                device_bytes = _device_bytes(pids)
                device_peak_bytes = max(device_peak_bytes, device_bytes or 0)
                self._events.write(
                    "memory",
                    phase=job.name,
                    bytes=used,
                    peak_bytes=peak_bytes,
                    budget_bytes=job.memory_budget if on_device else budget,
                    device_bytes=device_bytes,
                    system_available_bytes=hardware.available_bytes(),
                    **({"device": on_device, "device_peak_bytes": device_peak_bytes or None} if on_device else {}),
                    **(
                        {"ranks": [{"rank": rank, "bytes": size} for rank, size in each.items()]}
                        if len(each) > 1
                        else {}
                    ),
                )
            if ended:
                return peak_bytes
            self._control.look()
            time.sleep(_POLL_SECONDS)

    def _on_device(self, job: Job) -> dict[str, Any]:
        """The peak of a phase on its GPU, as the phase itself found it; empty for one without a GPU."""
        on_device = _computes_on(job)
        result = self._run.result(job.name) or {}
        return {"device": on_device, "device_peak_bytes": result.get("device_peak_bytes")} if on_device else {}


def _computes_on(job: Job) -> str | None:
    """The name of the GPU whose memory a job's budget is for; None where that is main memory.

    Only the phases that work with records compute there.
    """
    return job.device if isinstance(job, RecordsJob) and not job.where.shares_main_memory else None


def _pids(child: Child | Crew) -> dict[int, int]:
    """The processes of a phase that run, by rank."""
    if isinstance(child, Crew):
        return child.pids
    return {} if child.pid is None else {0: child.pid}


def _device_bytes(pids: Mapping[int, int]) -> int | None:
    held = [found for pid in pids.values() if (found := process_memory.device_bytes(pid)) is not None]
    return sum(held) if held else None


def _over_budget(phase: str, used: int, budget: int) -> str:
    return (
        f"The {phase} phase takes {format_bytes(used)}, more than its budget of {format_bytes(budget)}. The prediction "
        "was too low; the phase continues as long as the system has memory."
    )


def _end_of(log: Path, start: int) -> str:
    """Return a phase's last output: C code that runs out of memory (bitsandbytes, Rust) prints this and exits."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        return file.read().decode(errors="replace")
    return ""
