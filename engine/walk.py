"""The walk of a run through its phases: which is next, and what follows the end of each.

A phase that ran out of memory begins again with less; damaged inputs are made again; everything else that ends a phase
early ends the run. How a phase is started and watched is not known here (:mod:`engine.phase_watch`).
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass

from engine import backoff, hardware
from engine.channel.events import EventWriter
from engine.command import how_to_continue, resume_command
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
from engine.models.spec import read_spec
from engine.out_of_memory import tells_out_of_memory
from engine.phase_kinds import PHASES
from engine.phase_start import MOST_KILLS, not_for_memory
from engine.phase_watch import Ending
from engine.run import Run
from engine.run_control import RunControl


def phases_asked(run: Run) -> tuple[str, ...]:
    """The phases up to ``--until``."""
    until = run.settings.until
    return PHASES[: PHASES.index(until) + 1] if until else PHASES


@dataclass
class _Answered:
    """Answers to the ends of a phase so far: some help once at most."""

    records_again: bool = False
    tokens_again: bool = False
    kills: int = 0


class Walk:
    """Takes a run through its phases.

    Args:
        run: the run.
        events: receives what is done about the end of a phase.
        control: requests to the run.
        run_phase: runs a phase's process to its end.
    """

    def __init__(self, run: Run, events: EventWriter, control: RunControl, run_phase: Callable[[str], Ending]) -> None:
        self._run = run
        self._events = events
        self._control = control
        self._run_phase = run_phase

    def go(self) -> None:
        """Do each phase that was asked for and is not done.

        Raises:
            Stopped: the run was asked to stop.
            TinyDistillError: a phase ended early, and the run with it; without a text where the phase has told it.
        """
        for phase in phases_asked(self._run):
            if self._run.result(phase) is None:
                self.do(phase)

    def do(self, phase: str) -> None:
        """Run one phase to its end, again with less after each time that memory ran out.

        Raises:
            Stopped, TinyDistillError: as :meth:`go`.
        """
        answered = _Answered()
        while True:
            self._control.raise_if_stopped()
            killed_for_memory = hardware.killed_for_memory()
            ending = self._run_phase(phase)
            if ending.code == 0 and self._run.result(phase) is not None:
                return
            self._control.raise_if_stopped()
            self._answer(phase, ending, answered, killed_for_memory)

    def _answer(self, phase: str, ending: Ending, answered: _Answered, killed_for_memory: int | None) -> None:
        """Do what lets the phase begin again; raise where nothing does."""
        code = ending.code
        if code == Stopped.exit_code:
            raise Stopped("The run was stopped.")
        if code == EXIT_RECORDS_MISSING and not answered.records_again:
            answered.records_again = True
            self._make_records_again()
        elif code == EXIT_TOKENS_DAMAGED and not answered.tokens_again:
            answered.tokens_again = True
            self._make_tokens_again()
        elif code == -signal.SIGKILL and answered.kills < MOST_KILLS and not_for_memory(killed_for_memory):
            answered.kills += 1
            self._events.log(
                "warning",
                f"The {phase} phase was killed, but not by the OOM killer; it restarts with the same settings.",
                "killed",
            )
        elif code in (EXIT_OUT_OF_MEMORY, -signal.SIGKILL):
            self._back_off(phase, killed=code < 0)
        elif code == EXIT_RANK_LOST:
            raise _rank_lost(self._run, phase, ending.silent)
        elif code == EXIT_OVERFLOWED and self._run.settings.precision == "fp16":
            self._use_fp32()
        elif code in (2, 3, 4):
            raise _AlreadySaid(code)
        elif tells_out_of_memory(ending.last_words):
            self._back_off(phase, killed=False)
        else:
            raise PhaseDied(
                f"The {phase} phase ended without an error message ({_ending(code)}).",
                "Its last lines are in run.log.",
                how_to_continue(self._run.path),
            )

    def _make_records_again(self) -> None:
        self._events.log(
            "warning",
            "Some of the teacher's records are missing or damaged: the teacher scores these rows again.",
            "records-again",
        )
        self._run.reopen_phase("teacher")
        self.do("teacher")

    def _make_tokens_again(self) -> None:
        """Read the text once more; the rows have to be the same, or what was learned from them is of other text."""
        before = (self._run.result("prepare") or {}).get("data", {})
        self._events.log("warning", f"{self._run.tokens_path} is damaged: it is made again.", "tokens-again")
        self._run.reopen_phase("prepare")
        self.do("prepare")
        after = (self._run.result("prepare") or {}).get("data", {})
        if any(before.get(key) != after.get(key) for key in ("data_hash", "holdout_data_hash")):
            raise CorruptState(
                f"{self._run.tokens_path} was damaged, and the text has changed since it was made.",
                "The student would continue with a different text.",
                "Put the text back as it was and resume, or start a new run; with --cache_dir it takes the records of "
                "the rows that are the same.",
            )

    def _use_fp32(self) -> None:
        """Begin the teacher again in fp32; its records in fp16 are of another number format, and are not mixed."""
        change = {"from": "fp16", "to": "fp32"}
        self._events.write("back_off", phase="teacher", reason="the teacher overflows", field="precision", **change)
        if not self._run.settings.cache_dir:  # a shared folder has one for each format
            shutil.rmtree(self._run.cache_path, ignore_errors=True)
        self._run.info["settings"]["precision"] = "fp32"
        self._run.save()

    def _back_off(self, phase: str, *, killed: bool) -> None:
        step = backoff.next_step(phase, self._run.settings, self._head_blocks())
        reason = "the process was killed, probably by the OOM killer" if killed else "out of memory"
        if step is None:
            raise OutOfMemory(
                f"The {phase} phase ran out of memory with the smallest possible settings.",
                reason[0].upper() + reason[1:] + ".",
                "Close other programs, or start a run with a smaller student or a shorter --sequence_length; "
                f"to try this one again: {resume_command(self._run.path)}",
            )
        for name, old, new in step.changes:
            self._events.write("back_off", phase=phase, reason=reason, field=name, **{"from": old, "to": new})
            kept_in = self._run.info if name == backoff.HEAD_CHUNK else self._run.info["settings"]
            kept_in[name] = new
        self._run.info.setdefault("backed_off", []).append({"phase": phase, "reason": reason, "changes": step.changes})
        self._run.save()

    def _head_blocks(self) -> backoff.HeadBlocks | None:
        settings = self._run.settings
        try:
            spec = read_spec(str(settings.teacher), trust_remote_code=settings.trust_remote_code)
        except TinyDistillError:
            return None  # there are other steps
        return backoff.HeadBlocks.of(spec.vocab_size, settings, self._run.head_chunk_tokens)


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
