"""The supervisor: one small process that sees a run through.

It starts the phases one after the other, each in a process of its own; samples their memory; obeys ``control``; backs
off when memory runs out; and writes how it ended. It is detached from whatever started it, so a closed terminal or a
killed wizard changes nothing. It knows nothing of models or tensors, and never imports torch.

Run as ``python -m engine.supervisor RUN_DIR [--tied]``: tied, it stops in order when the process that started it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from engine import backoff, hardware, preloaded, ranks, report, safe_child
from engine.channel import last_word
from engine.channel.events import EventWriter, Tail
from engine.channel.last_word import VARIABLE, LastWord
from engine.command import how_to_continue, resume_command
from engine.crew import Crew
from engine.disk import file_lock
from engine.errors import (
    EXIT_OUT_OF_MEMORY,
    EXIT_OVERFLOWED,
    EXIT_RANK_LOST,
    EXIT_RECORDS_MISSING,
    EXIT_TOKENS_DAMAGED,
    CorruptState,
    FolderError,
    OutOfMemory,
    PhaseDied,
    RankLost,
    RunFailed,
    Stopped,
    TinyDistillError,
)
from engine.format import format_bytes
from engine.launched import Elsewhere, Launch
from engine.machine import process_memory, system
from engine.models.spec import read_spec
from engine.out_of_memory import tells_out_of_memory
from engine.phase_environment import environment_for, phase_environment
from engine.phase_kinds import KINDS, PHASES
from engine.preloaded import Child, Preloaded, Started, Usage
from engine.ranks import ALONE, Rank
from engine.run import Run
from engine.runs import announced
from engine.version import __version__

COMMANDS = ("stop", "pause", "resume")
STOPPING_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # Windows has the first two; a run is refused there, but its help is not
)
"""All of them stop a run in order: job schedulers warn by USR1 or USR2 before they kill, a lost terminal by HUP."""

# Number of kills by others than the kernel after which memory is suspected after all.
_MOST_KILLS = 3
_LAST_WORDS_BYTES = 4096
_POLL_SECONDS = 0.1  # how often memory and control are looked at
_MEMORY_EVENT_SECONDS = 2.0  # the promise is 5: readers tell "slow" from "dead" by it


def start(
    path: Path,
    *,
    tied: bool = False,
    environment: Mapping[str, str] | None = None,
    last_word: LastWord | None = None,
) -> subprocess.Popen[bytes]:
    """Start a supervisor for the run in ``path``, detached from this terminal and session.

    Args:
        path: the run's folder, with its ``run.json``.
        tied: stop the run in order when the calling process ends.
        environment: instead of this process's own.
        last_word: hears why the run ended, where the disk takes no word of it.

    Raises:
        FolderError: the folder cannot be written.
        RunFailed: the system starts no more processes.
    """
    system.require()
    command = safe_child.command("engine.supervisor", str(path), *(["--tied"] if tied else []))
    try:
        opened = (path / "run.log").open("ab")
    except OSError as error:
        raise unwritable(path, error) from error
    environment = safe_child.environment(environment)
    environment.pop(VARIABLE, None)
    if last_word is not None:
        environment[VARIABLE] = str(last_word.writing)
    try:
        with opened as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                close_fds=True,
                pass_fds=() if last_word is None else (last_word.writing,),
                env=environment,
            )
    except OSError as error:
        raise RunFailed(
            f"The run could not be started ({error.strerror or error}).",
            "",
            f"Free some memory or end other processes, then: {resume_command(path)}",
        ) from error
    finally:
        if last_word is not None:
            last_word.started()


def request(path: Path, command: str, by: str) -> None:
    """Ask the supervisor of a run to ``stop``, ``pause`` or ``resume``; it answers with ``control`` events."""
    line = json.dumps({"kind": "control", "command": command, "by": by, "time": time.time()}) + "\n"
    descriptor = os.open(path / "control", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@dataclass
class Supervisor:
    """Sees one run through; :meth:`supervise` returns its exit code."""

    run: Run
    tied_to: int | None = None
    _events: EventWriter = field(init=False)
    _control: Tail = field(init=False)
    _lock: int = field(init=False, default=-1)
    _child: Child | Crew | None = field(init=False, default=None)
    _launch: Launch | None = field(init=False, default=None)
    _silent: list[int] = field(init=False, default_factory=list)
    _preloaded: Preloaded | None = field(init=False, default=None)
    _last_words: str = field(init=False, default="")
    _stopping: bool = field(init=False, default=False)
    _paused: bool = field(init=False, default=False)

    def supervise(self) -> int:
        """Hold the run's lock until the run is done, has failed or was stopped.

        Raises:
            FolderError: another supervisor holds the run.
        """
        self._launch = Launch.of(os.environ)
        with self.run.lock() as self._lock, announced(self.run.path):
            resumed = self.run.events_path.exists() and self.run.events_path.stat().st_size > 0
            self._events = EventWriter(self.run.events_path, log_path=self.run.log_path)
            self._control = Tail(self.run.control_path, from_end=True)  # what an earlier supervisor was asked is over
            for number in STOPPING_SIGNALS:
                signal.signal(number, self._heard)
            self._events.write(
                "run_resumed" if resumed else "run_started",
                version=__version__,
                name=self.run.name,
                pid=os.getpid(),
                host=socket.gethostname(),
                boot_id=hardware.boot_id(),
            )
            if self.run.without_locks:
                self._events.log("warning", file_lock.no_locks(self.run.path), "no-locks")
            self._events.write("plan", choices=self.run.info["choices"], predicted=self.run.info["predicted"])
            status, code = self._see_through()
            self._events.write("run_finished", status=status, exit_code=code)
            return code

    def _see_through(self) -> tuple[str, int]:
        for file in self.run.damaged_results(PHASES):
            self._events.log("warning", f"{file} is damaged: the phase runs again.", "damaged-result")
        try:
            self._preload()
            for phase in self._phases_asked():
                if self.run.result(phase) is None:
                    self._run_phase(phase)
            self.run.sweep()
            if self.run.result("student") is not None:
                report.write(self.run)
        except Stopped:
            return "stopped", Stopped.exit_code
        except TinyDistillError as error:
            if error.what:
                self._events.write("error", what=error.what, why=error.why, todo=error.todo)
            return "failed", error.exit_code
        except Exception as error:  # the edge of the process: nothing may end without a word
            self._events.text(traceback.format_exc())
            self._events.write(
                "error",
                what=f"The supervisor met something unexpected: {type(error).__name__}: {error}.",
                why="This is a defect of the program; the traceback is in run.log.",
                todo=how_to_continue(self.run.path),
            )
            return "failed", 4
        finally:
            self._end_preloaded()
        return "done", 0

    def _phases_asked(self) -> tuple[str, ...]:
        until = self.run.settings.until
        return PHASES[: PHASES.index(until) + 1] if until else PHASES

    def _run_phase(self, phase: str) -> None:
        """Run one phase to its end, again with less after each time that memory ran out."""
        records_made_again = tokens_made_again = False
        killed = 0
        while True:
            self._raise_if_stopped()
            killed_for_memory = hardware.killed_for_memory()
            code = self._run_process(phase)
            if code == 0 and self.run.result(phase) is not None:
                return
            self._raise_if_stopped()
            if code == Stopped.exit_code:
                raise Stopped("The run was stopped.")
            if code == EXIT_RECORDS_MISSING and not records_made_again:
                records_made_again = True
                self._events.log(
                    "warning",
                    "Some of the teacher's records are missing or damaged: the teacher scores these rows again.",
                    "records-again",
                )
                self.run.reopen_phase("teacher")
                self._run_phase("teacher")
            elif code == EXIT_TOKENS_DAMAGED and not tokens_made_again:
                tokens_made_again = True
                self._make_tokens_again()
            elif code == -signal.SIGKILL and killed < _MOST_KILLS and _not_for_memory(killed_for_memory):
                killed += 1
                self._events.log(
                    "warning",
                    f"The {phase} phase was killed, but not by the OOM killer; it restarts with the same settings.",
                    "killed",
                )
            elif code in (EXIT_OUT_OF_MEMORY, -signal.SIGKILL):
                self._back_off(phase, killed=code < 0)
            elif code == EXIT_RANK_LOST:
                raise _rank_lost(self.run, phase, self._silent)
            elif code == EXIT_OVERFLOWED and self.run.settings.precision == "fp16":
                self._use_fp32()
            elif code in (2, 3, 4):
                raise _AlreadySaid(code)
            elif tells_out_of_memory(self._last_words):
                self._back_off(phase, killed=False)
            else:
                raise PhaseDied(
                    f"The {phase} phase ended without an error message ({_ending(code)}).",
                    "Its last lines are in run.log.",
                    how_to_continue(self.run.path),
                )

    def _make_tokens_again(self) -> None:
        """Read the text once more; the rows have to be the same, or what was learned from them is of other text."""
        before = (self.run.result("prepare") or {}).get("data", {})
        self._events.log("warning", f"{self.run.tokens_path} is damaged: it is made again.", "tokens-again")
        self.run.reopen_phase("prepare")
        self._run_phase("prepare")
        after = (self.run.result("prepare") or {}).get("data", {})
        if any(before.get(key) != after.get(key) for key in ("data_hash", "holdout_data_hash")):
            raise CorruptState(
                f"{self.run.tokens_path} was damaged, and the text has changed since it was made.",
                "The student would continue with a different text.",
                "Put the text back as it was and resume, or start a new run; with --cache_dir it takes the records of "
                "the rows that are the same.",
            )

    def _use_fp32(self) -> None:
        """Begin the teacher again in fp32; its records in fp16 are of another number format, and are not mixed."""
        change = {"from": "fp16", "to": "fp32"}
        self._events.write("back_off", phase="teacher", reason="the teacher overflows", field="precision", **change)
        if not self.run.settings.cache_dir:  # a shared folder has one for each format
            shutil.rmtree(self.run.cache_path, ignore_errors=True)
        self.run.info["settings"]["precision"] = "fp32"
        self.run.save()

    def _back_off(self, phase: str, *, killed: bool) -> None:
        step = backoff.next_step(phase, self.run.settings, self._head_blocks())
        reason = "the process was killed, probably by the OOM killer" if killed else "out of memory"
        if step is None:
            raise OutOfMemory(
                f"The {phase} phase ran out of memory with the smallest possible settings.",
                reason[0].upper() + reason[1:] + ".",
                "Close other programs, or start a run with a smaller student or a shorter --sequence_length; "
                f"to try this one again: {resume_command(self.run.path)}",
            )
        for name, old, new in step.changes:
            self._events.write("back_off", phase=phase, reason=reason, field=name, **{"from": old, "to": new})
            kept_in = self.run.info if name == backoff.HEAD_CHUNK else self.run.info["settings"]
            kept_in[name] = new
        self.run.info.setdefault("backed_off", []).append({"phase": phase, "reason": reason, "changes": step.changes})
        self.run.save()

    def _head_blocks(self) -> backoff.HeadBlocks | None:
        settings = self.run.settings
        try:
            spec = read_spec(str(settings.teacher), trust_remote_code=settings.trust_remote_code)
        except TinyDistillError:
            return None  # there are other steps
        return backoff.HeadBlocks.of(spec.vocab_size, settings, self.run.head_chunk_tokens)

    def _run_process(self, phase: str) -> int:
        self.run.sweep()  # no phase runs, so partial files belong to a killed one
        self._events.write("phase_started", phase=phase)
        began = time.monotonic()
        code, peak_bytes, usage = 0, 0, Usage()
        with self.run.log_path.open("ab") as log:
            said_from = log.seek(0, os.SEEK_END)
            for crew in self._crews(phase):
                code, most_bytes, spent = self._run_crew(phase, crew, log)
                peak_bytes, usage = max(peak_bytes, most_bytes), usage + spent
                if code != 0:
                    break
        self._last_words = _end_of(self.run.log_path, said_from)
        if code == 0:
            self._events.write(
                "phase_finished",
                phase=phase,
                seconds=round(time.monotonic() - began, 3),
                peak_bytes=peak_bytes,
                user_seconds=round(usage.user_seconds, 2),
                system_seconds=round(usage.system_seconds, 2),
                minor_faults=usage.minor_faults,
            )
        return code

    def _crews(self, phase: str) -> Iterator[list[Rank]]:
        """The processes of a phase, those that work at the same time together."""
        share = ranks.share_by_hand(self.run.settings, os.environ) if KINDS[phase].ranks == "apart" else None
        world = self.run.settings.processes
        if share is not None:
            rank, told_by = share
            said = f"This run scores share {rank.number + 1} of {rank.world}, as {told_by} says."
            self._events.log("info", said, "share")
            yield [rank]
            self._finish_share(rank)
            return
        if KINDS[phase].ranks == "apart" and world > 1:
            for rank in ranks.all_ranks(world):
                self.run.reopen_phase(rank.result)
            yield ranks.all_ranks(world)
        # One process judges what several have scored; the ranks of a training end with rank 0's result.
        yield ranks.all_ranks(world) if KINDS[phase].ranks == "together" and world > 1 else [ALONE]

    def _finish_share(self, rank: Rank) -> None:
        """Enter the result of a share; ``--resume`` scores what is missing then."""
        scored = self.run.result(rank.result) or {}
        self.run.finish_phase("teacher", {**scored, "share": {"rank": rank.number, "world": rank.world}})

    def _run_crew(self, phase: str, crew: list[Rank], log: IO[bytes]) -> tuple[int, int, Usage]:
        """Run the processes of a phase to their end; return the exit code, the peak of their memory, their usage."""
        with (
            self._meeting_place()
            if KINDS[phase].ranks == "together" and len(crew) > 1
            else contextlib.nullcontext() as meeting
        ):
            child: Child | Crew
            if crew == [ALONE]:
                child = self._preloaded_phase(phase) or Started(self._new_process(phase, log, ALONE))
            else:
                child = self._new_crew(phase, crew, log, meeting)
            self._child = child
            if self._paused:
                child.send_signal(signal.SIGUSR1)
            try:
                peak_bytes = self._watch(phase, child)
            finally:
                if child.poll() is None:
                    child.kill()
                code = child.wait()
                self._silent = child.silent if isinstance(child, Crew) else []
                self._child = None
        return code, peak_bytes, child.usage

    def _new_crew(self, phase: str, crew: list[Rank], log: IO[bytes], meeting: str | None) -> Crew:
        killed_for_memory = hardware.killed_for_memory()
        restarts = 0

        def start(rank: Rank) -> Child:
            launch = self._launch
            if launch is not None and rank.number and rank.world == launch.rank.world:
                return Elsewhere(self.run.path, launch, rank, phase, meeting)
            return Started(self._new_process(phase, log, rank, meeting))

        def again(rank: Rank, code: int) -> bool:
            """Whether a killed scorer is started again: it has lost a wave, and the others do not need it."""
            nonlocal restarts
            was_killed = code == -signal.SIGKILL and _not_for_memory(killed_for_memory)
            if KINDS[phase].ranks != "apart" or not was_killed or self._stopping or restarts >= _MOST_KILLS:
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
                safe_child.command("engine.phase", phase, str(self.run.path), str(os.getpid())),
                pass_fds=self._inherited(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment_for(
                    self.run.settings, rank, meeting, local_world=self._launch.local_world if self._launch else None
                ),
            )

    def _inherited(self) -> tuple[int, ...]:
        """Descriptors for a phase: with the lock's, one that outlives its supervisor keeps the run until it ends."""
        return tuple(fd for fd in (self._lock, last_word.inherited()) if fd is not None)

    def _preload(self) -> None:
        """Start the process that phases are made from, where there is room for it and several are to be done."""
        to_do = [phase for phase in self._phases_asked() if self.run.result(phase) is None]
        is_tight = bool(self.run.info.get("backed_off"))
        if self.run.settings.processes > 1 or ranks.share_by_hand(self.run.settings, os.environ) is not None:
            return  # it makes one phase after the other, and none beside another
        if is_tight or not preloaded.is_worth_it(self.run.settings, self.run.info["predicted"], to_do):
            return
        with self.run.log_path.open("ab") as log:
            self._preloaded = Preloaded(self.run.path, phase_environment(self.run), log, self._inherited())

    def _preloaded_phase(self, phase: str) -> Child | None:
        """A phase out of the process that has imported everything; None where there is none, or it does not suit."""
        server = self._preloaded
        if server is None:
            return None
        if server.environment != phase_environment(self.run) or self.run.info.get("backed_off"):
            self._end_preloaded()  # memory was short, or a setting of the environment has changed
            return None
        is_last = phase == self._phases_asked()[-1]
        found = server.begin(phase, is_last=is_last)
        if found is None or is_last:
            self._preloaded = None  # gone, or a phase itself now
        return found

    def _end_preloaded(self) -> None:
        if self._preloaded is not None:
            self._preloaded.end()
            self._preloaded = None

    def _watch(self, phase: str, child: Child | Crew) -> int:
        """Sample memory and obey control until the child ends; returns the peak of its anonymous memory.

        The memory of several ranks is their sum.
        """
        settings = self.run.settings
        on_cpu = (settings.device or "cpu") == "cpu"
        budget = settings.memory_budget if on_cpu else settings.ram_budget  # of main memory, which is looked at here
        peak_bytes = 0
        is_over = False
        next_event = 0.0
        while True:
            pids = _pids(child)
            each = {rank: process_memory.memory_of_tree(pid) for rank, pid in pids.items()}
            each |= child.elsewhere if isinstance(child, Crew) else {}
            used = sum(each.values())
            peak_bytes = max(peak_bytes, used)
            if used > (budget or used) and not is_over:
                is_over = True
                self._events.log("warning", _over_budget(phase, used, budget or 0), "over-budget")
            ended = child.poll() is not None
            if ended or time.monotonic() >= next_event:
                next_event = time.monotonic() + _MEMORY_EVENT_SECONDS
                self._events.write(
                    "memory",
                    phase=phase,
                    bytes=used,
                    peak_bytes=peak_bytes,
                    budget_bytes=settings.memory_budget,
                    device_bytes=_device_bytes(pids),
                    system_available_bytes=hardware.available_bytes(),
                    **(
                        {"ranks": [{"rank": rank, "bytes": size} for rank, size in each.items()]}
                        if len(each) > 1
                        else {}
                    ),
                )
            if ended:
                return peak_bytes
            self._obey()
            if self.tied_to is not None and os.getppid() != self.tied_to:
                self.tied_to = None
                self._take("stop", "the command that started the run has ended")
            time.sleep(_POLL_SECONDS)

    def _obey(self) -> None:
        for line in self._control.read():
            self._take(str(line.get("command")), str(line.get("by", "")))

    def _take(self, command: str, by: str) -> None:
        accepted = command in COMMANDS and not self._stopping
        self._events.write("control", command=command, by=by, accepted=accepted)
        if not accepted:
            return
        if command == "stop":
            self._stopping = True
            self._events.write("control", state="stopping")
            self._signal_child(signal.SIGTERM)
        elif command == "pause" and not self._paused:
            self._paused = True
            self._events.write("control", state="pausing")
            self._signal_child(signal.SIGUSR1)
        elif command == "resume" and self._paused:
            self._paused = False
            self._signal_child(signal.SIGUSR2)

    def _signal_child(self, number: int) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        if not self._stopping:
            self._take("stop", signal.Signals(number).name)

    def _raise_if_stopped(self) -> None:
        if self._stopping:
            raise Stopped("The run was stopped.")


class _AlreadySaid(TinyDistillError):
    """A phase ended with an error that it wrote into the events itself."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code  # type: ignore[misc]


def _pids(child: Child | Crew) -> dict[int, int]:
    """The processes of a phase that run, by rank."""
    if isinstance(child, Crew):
        return child.pids
    return {} if child.pid is None else {0: child.pid}


def _device_bytes(pids: Mapping[int, int]) -> int | None:
    held = [found for pid in pids.values() if (found := process_memory.device_bytes(pid)) is not None]
    return sum(held) if held else None


def _rank_lost(run: Run, phase: str, silent: list[int]) -> RankLost:
    which = f"Rank {', '.join(map(str, silent))} of" if silent else "A rank of"
    return RankLost(
        f"{which} the {phase} phase did not answer, and the other ranks have ended.",
        "They wait for each other in every step, up to a limit.",
        how_to_continue(run.path, "Check that every machine is reachable"),
    )


def unwritable(path: Path, error: OSError) -> FolderError:
    """The error for a run whose folder cannot be used, in the words of the system."""
    return FolderError(
        f"The run in {path} cannot go on: {error.filename or path}: {error.strerror}.",
        "A run writes its events and results into its folder.",
        "Make the folder writable, then resume the run.",
    )


def _over_budget(phase: str, used: int, budget: int) -> str:
    return (
        f"The {phase} phase takes {format_bytes(used)}, more than its budget of {format_bytes(budget)}. The prediction "
        "was too low; the phase continues as long as the system has memory."
    )


def _not_for_memory(killed_before: int | None) -> bool:
    """Return whether another program than the kernel killed the phase: then smaller settings would not help."""
    return killed_before is not None and hardware.killed_for_memory() == killed_before


def _end_of(log: Path, start: int) -> str:
    """Return a phase's last output: C code that runs out of memory (bitsandbytes, Rust) prints this and exits."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        return file.read().decode(errors="replace")
    return ""


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``python -m engine.supervisor``."""
    words = sys.argv[1:] if arguments is None else arguments
    tied = "--tied" in words
    folder = Path(next(word for word in words if word != "--tied"))
    try:
        said: TinyDistillError
        return Supervisor(Run.open(folder), tied_to=os.getppid() if tied else None).supervise()
    except TinyDistillError as error:
        said = error
    except OSError as error:  # the lock or the events cannot be opened; nothing was begun
        said = unwritable(folder, error)
    except Exception as error:  # the edge of the process: nothing may end without a word
        traceback.print_exc()
        said = RunFailed(
            f"The supervisor met something unexpected: {type(error).__name__}: {error}.",
            "This is a defect of the program; the traceback is in run.log.",
            how_to_continue(folder),
        )
    last_word.say({"what": said.what, "why": said.why, "todo": said.todo})
    sys.stderr.write(said.paragraph() + "\n")
    return said.exit_code


if __name__ == "__main__":
    sys.exit(main())
