"""Start of a job's process, or of the processes that do the job together.

Its process is a program of its own (``python -m engine.phases.process``) or a copy of a process that has imported
everything (:mod:`engine.run.preloaded`); several ranks have one each (:mod:`engine.run.crew`), some of them on other
machines (:mod:`engine.run.launched`). It knows nothing of how they end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from engine import ranks
from engine.channel import last_word
from engine.channel.events import EventWriter
from engine.jobs import Job
from engine.machine import hardware, safe_child
from engine.phase_kinds import KINDS
from engine.ranks import ALONE, Rank
from engine.run import preloaded
from engine.run.child import Child, Started
from engine.run.control import RunControl
from engine.run.crew import Crew
from engine.run.folder import Run
from engine.run.launched import Elsewhere, Launch
from engine.run.phase_environment import environment_for
from engine.run.preloaded import Preloaded

MOST_KILLS = 3
"""Number of kills by others than the kernel after which memory is suspected after all."""


class PhaseStarter:
    """Starts the processes of a run's jobs.

    Args:
        run: whose jobs.
        events: receives what a user should know.
        control: a run that stops has no rank started again.
        launch: that this process is part of; None for a process of its own.
        lock: descriptor that holds the run's lock. A job's process inherits it: one that outlives its supervisor keeps
            the run until it ends.
    """

    def __init__(
        self,
        run: Run,
        events: EventWriter,
        control: RunControl,
        *,
        launch: Launch | None = None,
        lock: int | None = None,
    ) -> None:
        self._run = run
        self._events = events
        self._control = control
        self._launch = launch
        self._lock = lock
        self._last = ""
        self._preloaded: Preloaded | None = None

    def preload(self, jobs: Sequence[Job]) -> None:
        """Start the process that phases are made from, where there is room for it and several are to be done.

        Args:
            jobs: that the run is asked for, in order.
        """
        self._last = jobs[-1].name
        to_do = [job for job in jobs if self._run.result(job.name) is None]
        is_tight = bool(self._run.info.get("backed_off"))
        if is_tight or not preloaded.is_worth_it(to_do, self._run.info["predicted"]):
            return
        with self._run.log_path.open("ab") as log:
            self._preloaded = Preloaded(self._run.path, self._environment(to_do[0], ALONE), log, self._inherited())

    def end(self) -> None:
        """End the process that phases are made from."""
        if self._preloaded is not None:
            self._preloaded.end()
            self._preloaded = None

    def crews(self, job: Job) -> Iterator[list[Rank]]:
        """The processes of a job, those that work at the same time together."""
        how, world = KINDS[job.kind].ranks, job.processes
        share = ranks.share_by_hand(self._run.settings, os.environ) if how == "apart" else None
        if how == "apart" and share is None and (tasks := ranks.batch_tasks(os.environ)) > world:
            said = f"The Slurm job has {tasks} tasks, and this is its batch script: it scores all rows by itself. "
            self._events.log("info", said + "srun starts several tasks, which share the scoring.", "share")
        if share is not None:
            rank, told_by = share
            said = f"This run scores share {rank.number + 1} of {rank.world}, as {told_by} says; other processes "
            self._events.log("info", f"{said}have to score the rest. Unset {told_by} to score all rows.", "share")
            yield [rank]
            self._finish_share(job, rank)
            return
        if how == "apart" and world > 1:
            for rank in ranks.all_ranks(world):
                self._run.reopen_phase(rank.result)
            yield ranks.all_ranks(world)
        # One process judges what several have scored; the ranks of a training end with rank 0's result.
        yield ranks.all_ranks(world) if how == "together" and world > 1 else [ALONE]

    @contextlib.contextmanager
    def started(self, job: Job, crew: list[Rank], log: IO[bytes]) -> Iterator[Child | Crew]:
        """Start the processes of a job; at the end of the context they may have ended or not.

        Args:
            job: the job.
            crew: as :meth:`crews` has it.
            log: takes what they write.
        """
        if crew == [ALONE]:
            yield self._process(job, log, ALONE)
            return
        with self._meeting_place() if KINDS[job.kind].ranks == "together" else contextlib.nullcontext() as meeting:
            yield self._new_crew(job, crew, log, meeting)

    def _finish_share(self, job: Job, rank: Rank) -> None:
        """Enter the result of a share; ``--resume`` scores what is missing then."""
        scored = self._run.result(rank.result) or {}
        self._run.finish_phase(job.name, {**scored, "share": {"rank": rank.number, "world": rank.world}})

    def _new_crew(self, job: Job, crew: list[Rank], log: IO[bytes], meeting: str | None) -> Crew:
        how = KINDS[job.kind].ranks
        killed_for_memory = hardware.killed_for_memory()
        restarts = 0

        def start(rank: Rank) -> Child:
            launch = self._launch
            if launch is not None and rank.number and rank.world == launch.rank.world:
                return Elsewhere(self._run.path, launch, rank, job.name, meeting)
            return self._process(job, log, rank, meeting)

        def again(rank: Rank, code: int) -> bool:
            """Whether a killed scorer is started again: it has lost a wave, and the others do not need it."""
            nonlocal restarts
            was_killed = code == -signal.SIGKILL and not_for_memory(killed_for_memory)
            if how != "apart" or not was_killed or self._control.stopping or restarts >= MOST_KILLS:
                return False
            restarts += 1
            said = f"Rank {rank.number} of the {job.name} phase was killed, but not by the OOM killer; it restarts."
            self._events.log("warning", said, "rank-killed")
            return True

        return Crew(crew, start, waits_for_all=how == "together", again=again)

    @contextlib.contextmanager
    def _meeting_place(self) -> Iterator[str]:
        """Where the ranks meet, new for each start: by a file on this machine, or at a port of rank 0's machine."""
        if self._launch is not None:
            yield self._launch.meeting()
            return
        with tempfile.TemporaryDirectory(prefix="tinydistill-ranks-", ignore_cleanup_errors=True) as folder:
            yield f"file://{folder}/store"

    def _process(self, job: Job, log: IO[bytes], rank: Rank, meeting: str | None = None) -> Child:
        """Start the process of a rank: a copy of the one that has imported everything, or a program of its own."""
        environment = self._environment(job, rank, meeting)
        if (copied := self._preloaded_phase(job, rank, environment)) is not None:
            return copied
        with preloaded.signals_held_back():
            return Started(
                subprocess.Popen(
                    safe_child.command("engine.phases.process", job.name, str(self._run.path), str(os.getpid())),
                    pass_fds=self._inherited(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
            )

    def _environment(self, job: Job, rank: Rank, meeting: str | None = None) -> dict[str, str]:
        return environment_for(job, rank, meeting, local_world=self._launch.local_world if self._launch else None)

    def _inherited(self) -> tuple[int, ...]:
        return tuple(fd for fd in (self._lock, last_word.inherited()) if fd is not None)

    def _preloaded_phase(self, job: Job, rank: Rank, environment: Mapping[str, str]) -> Child | None:
        """A phase out of the process that has imported everything; None where there is none, or it does not suit."""
        server = self._preloaded
        if server is None:
            return None
        if not server.suits(environment) or self._run.info.get("backed_off"):
            self.end()  # memory was short, or a setting of the environment has changed
            return None
        is_last = job.name == self._last and rank == ALONE
        found = server.begin(job.name, environment, is_last=is_last)
        if found is None or is_last:
            self._preloaded = None  # gone, or a phase itself now
        return found


def not_for_memory(killed_before: int | None) -> bool:
    """Return whether another program than the kernel killed the phase: then smaller settings would not help.

    Args:
        killed_before: kills by the kernel for memory, counted before the phase began; None where they are unknown.
    """
    return killed_before is not None and hardware.killed_for_memory() == killed_before
