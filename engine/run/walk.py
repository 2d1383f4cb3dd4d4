"""The walk of a run through its jobs: which is next, and what follows the end of each.

A job that ran out of memory is replaced by a smaller one; damaged inputs are made again; everything else that ends a
job early ends the run. How a process is started and watched is not known here (:mod:`engine.run.phase_watch`).
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.channel.events import EventWriter
from engine.errors import (
    EXIT_OUT_OF_MEMORY,
    EXIT_OVERFLOWED,
    EXIT_RANK_LOST,
    EXIT_RECORDS_MISSING,
    EXIT_TOKENS_DAMAGED,
    CorruptState,
    OutOfMemory,
    PhaseDied,
    RankLost,
    Stopped,
    TinyDistillError,
)
from engine.format import format_bytes
from engine.jobs import Change, Job, ScoreJob
from engine.machine import hardware
from engine.machine.out_of_memory import limit_of_a_process, tells_out_of_memory
from engine.run import backoff
from engine.run.control import RunControl
from engine.run.folder import Run
from engine.run.phase_start import MOST_KILLS, not_for_memory
from engine.run.phase_watch import Ending
from engine.run.room import has_room
from engine.settings.command import how_to_continue, resume_command


def jobs_asked(run: Run) -> tuple[Job, ...]:
    """The jobs up to the first one of the kind in ``--until``."""
    jobs, until = run.jobs, run.settings.until
    last = next((place for place, job in enumerate(jobs) if job.kind == until), len(jobs) - 1)
    return jobs[: last + 1]


@dataclass
class _Answered:
    """Answers to the ends of a job so far: some help once at most."""

    records_again: bool = False
    tokens_again: bool = False
    kills: int = 0


class Walk:
    """Takes a run through its jobs.

    Args:
        run: the run.
        events: receives what is done about the end of a job.
        control: requests to the run.
        run_job: runs a job's process to its end.
    """

    def __init__(self, run: Run, events: EventWriter, control: RunControl, run_job: Callable[[Job], Ending]) -> None:
        self._run = run
        self._events = events
        self._control = control
        self._run_job = run_job

    def go(self) -> None:
        """Do each job that was asked for and is not done.

        Raises:
            Stopped: the run was asked to stop.
            TinyDistillError: a job ended early, and the run with it; without a text if its process has reported it.
        """
        for job in jobs_asked(self._run):
            if self._run.result(job.name) is None:
                self.do(job.name)

    def do(self, name: str) -> None:
        """Do one job to its end, as a smaller one after each time that memory ran out.

        Raises:
            Stopped, TinyDistillError: as :meth:`go`.
        """
        answered = _Answered()
        while True:
            self._control.raise_if_stopped()
            killed_for_memory = hardware.killed_for_memory()
            job = self._run.job(name)
            ending = self._run_job(job)
            if ending.code == 0 and self._run.result(name) is not None:
                return
            self._control.raise_if_stopped()
            self._answer(job, ending, answered, killed_for_memory)

    def _answer(self, job: Job, ending: Ending, answered: _Answered, killed_for_memory: int | None) -> None:
        """Do what lets the job begin again; raise where nothing does."""
        code = ending.code
        if code == Stopped.exit_code:
            raise Stopped("The run was stopped.")
        if code == EXIT_RECORDS_MISSING and not answered.records_again:
            answered.records_again = True
            self._make_records_again(job)
        elif code == EXIT_TOKENS_DAMAGED and not answered.tokens_again:
            answered.tokens_again = True
            self._make_tokens_again(job)
        elif code == -signal.SIGKILL and answered.kills < MOST_KILLS and not_for_memory(killed_for_memory):
            answered.kills += 1
            self._events.log(
                "warning",
                f"The {job.name} phase was killed, but not by the OOM killer; it restarts with the same settings.",
                "killed",
            )
        elif code in (EXIT_OUT_OF_MEMORY, -signal.SIGKILL):
            self._back_off(job, killed=code < 0)
        elif code == EXIT_RANK_LOST:
            raise _rank_lost(self._run, job.name, ending.silent)
        elif code == EXIT_OVERFLOWED and isinstance(job, ScoreJob) and job.precision == "fp16":
            self._use_fp32(job)
        elif code in (2, 3, 4):
            raise _AlreadySaid(code)
        elif tells_out_of_memory(ending.last_words):
            self._back_off(job, killed=False)
        else:
            raise PhaseDied(
                f"The {job.name} phase ended without an error message ({_ending(code)}).",
                "Its last lines are in run.log.",
                how_to_continue(self._run.path),
            )

    def _last_before(self, job: Job, kind: str) -> str:
        """The name of the job that has made what this one reads."""
        names = [each.name for each in self._run.jobs]
        earlier = self._run.jobs[: names.index(job.name)]
        return next(each.name for each in reversed(earlier) if each.kind == kind)

    def _do_again(self, name: str) -> None:
        self._run.reopen_phase(name)
        self.do(name)

    def _make_records_again(self, job: Job) -> None:
        self._events.log(
            "warning",
            "Some of the teacher's records are missing or damaged: the teacher scores these rows again.",
            "records-again",
        )
        self._do_again(self._last_before(job, "teacher"))

    def _make_tokens_again(self, job: Job) -> None:
        """Read the text once more; the rows have to be the same, or what was learned from them is of other text."""
        name = self._last_before(job, "prepare")
        before = (self._run.result(name) or {}).get("data", {})
        self._events.log("warning", f"{self._run.tokens_path} is damaged: it is made again.", "tokens-again")
        self._do_again(name)
        after = (self._run.result(name) or {}).get("data", {})
        if any(before.get(key) != after.get(key) for key in ("data_hash", "holdout_data_hash")):
            raise CorruptState(
                f"{self._run.tokens_path} was damaged, and the text has changed since it was made.",
                "The student would continue with a different text.",
                "Put the text back as it was and resume, or start a new run; with --cache_dir it takes the records of "
                "the rows that are the same.",
            )

    def _use_fp32(self, job: Job) -> None:
        """Begin the teacher again in fp32; its records in fp16 are of another number format, and are not mixed."""
        if not self._run.settings.cache_dir:  # a shared folder has one for each format
            shutil.rmtree(self._run.cache_path, ignore_errors=True)
        changes = (("precision", "fp16", "fp32"),)
        self._tell(job, "the teacher overflows", changes)
        self._run.replace_job(job.name, changes)

    def _back_off(self, job: Job, *, killed: bool) -> None:
        step = backoff.step_that_fits(job, lambda smaller: has_room(self._run, smaller))
        reason = "the process was killed, probably by the OOM killer" if killed else "out of memory"
        if step is None:
            limit = limit_of_a_process()
            why, todo = reason[0].upper() + reason[1:], "Close other programs"
            if limit is not None:
                why += f"; each process may take {format_bytes(limit)} of addresses here (ulimit -v)"
                todo = "Raise that limit (ulimit -v unlimited)"
            raise OutOfMemory(
                f"The {job.name} phase ran out of memory with the smallest possible settings.",
                f"{why}.",
                f"{todo}, or start a run with a smaller student or a shorter --sequence_length; "
                f"to try this one again: {resume_command(self._run.path)}",
            )
        self._tell(job, reason, step.changes)
        self._run.back_off(job.name, reason, step.changes)

    def _tell(self, job: Job, reason: str, changes: Sequence[Change]) -> None:
        for name, old, new in changes:
            self._events.write("back_off", phase=job.name, reason=reason, field=name, **{"from": old, "to": new})


class _AlreadySaid(TinyDistillError):
    """A phase ended with an error that it wrote into the events itself."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code  # type: ignore[misc]


def _rank_lost(run: Run, phase: str, silent: tuple[int, ...]) -> RankLost:
    which = f"Rank {', '.join(map(str, silent))} of" if silent else "A rank of"
    return RankLost(
        f"{which} the {phase} phase did not answer, and the other ranks have ended.",
        "They wait for each other in every step, up to a limit.",
        how_to_continue(run.path, "Check that every machine is reachable"),
    )


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
