"""Start of a phase's process, or of the processes that do the phase together.

A phase is a program of its own (``python -m engine.phase``), a copy of a process that has imported everything
(:mod:`engine.preloaded`), or one process for each rank (:mod:`engine.crew`), some of them on other machines
(:mod:`engine.launched`). It knows nothing of how they end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

from engine import hardware, preloaded, ranks, safe_child
from engine.channel import last_word
from engine.channel.events import EventWriter
from engine.crew import Crew
from engine.launched import Elsewhere, Launch
from engine.phase_environment import environment_for, phase_environment
from engine.phase_kinds import KINDS
from engine.preloaded import Child, Preloaded, Started
from engine.ranks import ALONE, Rank
from engine.run import Run
from engine.run_control import RunControl

MOST_KILLS = 3
"""Number of kills by others than the kernel after which memory is suspected after all."""


class PhaseStarter:
    """Starts the phases of a run.

    Args:
        run: whose phases.
        events: receives what a user should know.
        control: a run that stops has no rank started again.
        launch: that this process is part of; None for a process of its own.
        lock: descriptor that holds the run's lock. A phase inherits it: one that outlives its supervisor keeps the run
            until it ends.
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
        self._phases: Sequence[str] = ()
        self._preloaded: Preloaded | None = None

    def preload(self, phases: Sequence[str]) -> None:
        """Start the process that phases are made from, where there is room for it and several are to be done.

        Args:
            phases: that the run is asked for, in order.
        """
        self._phases = phases
        settings = self._run.settings
        to_do = [phase for phase in self._phases if self._run.result(phase) is None]
        is_tight = bool(self._run.info.get("backed_off"))
        if settings.processes > 1 or ranks.share_by_hand(settings, os.environ) is not None:
            return  # it makes one phase after the other, and none beside another
        if is_tight or not preloaded.is_worth_it(settings, self._run.info["predicted"], to_do):
            return
        with self._run.log_path.open("ab") as log:
            self._preloaded = Preloaded(self._run.path, phase_environment(self._run), log, self._inherited())

    def end(self) -> None:
        """End the process that phases are made from."""
        if self._preloaded is not None:
            self._preloaded.end()
            self._preloaded = None

    def crews(self, phase: str) -> Iterator[list[Rank]]:
        """The processes of a phase, those that work at the same time together."""
        share = ranks.share_by_hand(self._run.settings, os.environ) if KINDS[phase].ranks == "apart" else None
        world = self._run.settings.processes
        if share is not None:
            rank, told_by = share
            said = f"This run scores share {rank.number + 1} of {rank.world}, as {told_by} says."
            self._events.log("info", said, "share")
            yield [rank]
            self._finish_share(rank)
            return
        if KINDS[phase].ranks == "apart" and world > 1:
            for rank in ranks.all_ranks(world):
                self._run.reopen_phase(rank.result)
            yield ranks.all_ranks(world)
        # One process judges what several have scored; the ranks of a training end with rank 0's result.
        yield ranks.all_ranks(world) if KINDS[phase].ranks == "together" and world > 1 else [ALONE]

    @contextlib.contextmanager
    def started(self, phase: str, crew: list[Rank], log: IO[bytes]) -> Iterator[Child | Crew]:
        """Start the processes of a phase; at the end of the context they may have ended or not.

        Args:
            phase: its name.
            crew: as :meth:`crews` has it.
            log: takes what they write.
        """
        if crew == [ALONE]:
            yield self._preloaded_phase(phase) or Started(self._new_process(phase, log, ALONE))
            return
        with self._meeting_place() if KINDS[phase].ranks == "together" else contextlib.nullcontext() as meeting:
            yield self._new_crew(phase, crew, log, meeting)

    def _finish_share(self, rank: Rank) -> None:
        """Enter the result of a share; ``--resume`` scores what is missing then."""
        scored = self._run.result(rank.result) or {}
        self._run.finish_phase("teacher", {**scored, "share": {"rank": rank.number, "world": rank.world}})

    def _new_crew(self, phase: str, crew: list[Rank], log: IO[bytes], meeting: str | None) -> Crew:
        killed_for_memory = hardware.killed_for_memory()
        restarts = 0

        def start(rank: Rank) -> Child:
            launch = self._launch
            if launch is not None and rank.number and rank.world == launch.rank.world:
                return Elsewhere(self._run.path, launch, rank, phase, meeting)
            return Started(self._new_process(phase, log, rank, meeting))

        def again(rank: Rank, code: int) -> bool:
            """Whether a killed scorer is started again: it has lost a wave, and the others do not need it."""
            nonlocal restarts
            was_killed = code == -signal.SIGKILL and not_for_memory(killed_for_memory)
            if KINDS[phase].ranks != "apart" or not was_killed or self._control.stopping or restarts >= MOST_KILLS:
                return False
            restarts += 1
            said = f"Rank {rank.number} of the {phase} phase was killed, but not by the OOM killer; it restarts."
            self._events.log("warning", said, "rank-killed")
            return True

        return Crew(crew, start, waits_for_all=KINDS[phase].ranks == "together", again=again)

    @contextlib.contextmanager
    def _meeting_place(self) -> Iterator[str]:
        """Where the ranks meet, new for each start: by a file on this machine, or at a port of rank 0's machine."""
        if self._launch is not None:
            yield self._launch.meeting()
            return
        with tempfile.TemporaryDirectory(prefix="tinydistill-ranks-", ignore_cleanup_errors=True) as folder:
            yield f"file://{folder}/store"

    def _new_process(
        self, phase: str, log: IO[bytes], rank: Rank, meeting: str | None = None
    ) -> subprocess.Popen[bytes]:
        with preloaded.signals_held_back():
            return subprocess.Popen(
                safe_child.command("engine.phase", phase, str(self._run.path), str(os.getpid())),
                pass_fds=self._inherited(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment_for(
                    self._run.settings, rank, meeting, local_world=self._launch.local_world if self._launch else None
                ),
            )

    def _inherited(self) -> tuple[int, ...]:
        return tuple(fd for fd in (self._lock, last_word.inherited()) if fd is not None)

    def _preloaded_phase(self, phase: str) -> Child | None:
        """A phase out of the process that has imported everything; None where there is none, or it does not suit."""
        server = self._preloaded
        if server is None:
            return None
        if server.environment != phase_environment(self._run) or self._run.info.get("backed_off"):
            self.end()  # memory was short, or a setting of the environment has changed
            return None
        is_last = phase == self._phases[-1]
        found = server.begin(phase, is_last=is_last)
        if found is None or is_last:
            self._preloaded = None  # gone, or a phase itself now
        return found


def not_for_memory(killed_before: int | None) -> bool:
    """Return whether another program than the kernel killed the phase: then smaller settings would not help.

    Args:
        killed_before: kills by the kernel for memory, counted before the phase began; None where they are unknown.
    """
    return killed_before is not None and hardware.killed_for_memory() == killed_before
