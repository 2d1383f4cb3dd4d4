"""The process of one job: ``python -m engine.phases.process JOB RUN_DIR [SUPERVISOR_PID]``. JOB is its name in the run.

It hands each part the values of the job that it uses. When it ends, its memory goes back to
the operating system: teacher and student can never be in memory together. Its exceptions become an ``error`` event
here, and an exit code for the supervisor.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.channel import last_word
from engine.channel.channel import Channel
from engine.channel.control import PhaseControl
from engine.channel.events import EventWriter
from engine.disk.files import NO_ROOM, no_room
from engine.errors import (
    EXIT_OUT_OF_MEMORY,
    EXIT_OVERFLOWED,
    EXIT_RANK_LOST,
    EXIT_RECORDS_MISSING,
    EXIT_TOKENS_DAMAGED,
    BadNumbers,
    ModelError,
    RankLost,
    RecordsMissing,
    RequestError,
    RunFailed,
    Stopped,
    TinyDistillError,
    TokensDamaged,
)
from engine.jobs import Job, ScoreJob
from engine.machine.kernels import kernels_environment
from engine.machine.out_of_memory import is_out_of_memory
from engine.phase_kinds import KINDS
from engine.ranks import Rank
from engine.run import preloaded
from engine.run.folder import Run, unwritable
from engine.settings.command import how_to_continue, resume_command

_WATCH_SECONDS = 0.5
_ORPHAN_SECONDS = 5.0  # for a step, and the checkpoint after it


def main(words: list[str] | None = None) -> int:
    """Run one phase to its end; returns what the supervisor expects."""
    name, folder, *supervisor = sys.argv[1:] if words is None else words
    parent = int(supervisor[0]) if supervisor else os.getppid()
    if name == preloaded.WAITING:
        made = preloaded.serve(parent, int(supervisor[1]))
        if made is None:
            return 0
        name, parent = made
    _die_with_parent(parent)
    _offer_itself()
    try:
        run = Run.open(Path(folder))
        job = run.job(name)
        rank = Rank.of_phase(os.environ)
        events = _OfRank(run.events_path, phase=name, log_path=run.log_path) if rank.number else run.event_writer(name)
    except (TinyDistillError, OSError) as error:
        said = error if isinstance(error, TinyDistillError) else unwritable(Path(folder), error)
        last_word.say({"what": said.what, "why": said.why, "todo": said.todo})
        sys.stderr.write(said.paragraph() + "\n")
        return said.exit_code
    control = PhaseControl.listening(
        parent, lambda paused: events.write("control", state="paused" if paused else "running")
    )
    os.environ.update(kernels_environment(job.kind))  # a copy of a preloaded process has the environment of all phases
    preloaded.let_signals_in()
    try:
        _body(job)(run, job, Channel(events, control))
    except Stopped:
        return Stopped.exit_code
    except Exception as error:  # the edge of the process: nothing may end without a word
        return _say(error, job, run, events)
    return 0


class _OfRank(EventWriter):
    """Events of another rank than 0: what is the same on each of them is written by rank 0 alone."""

    def write(self, kind: str, **fields: Any) -> None:
        """Write the event with the rank's number, or leave it out."""
        if kind in ("metric", "evaluation", "checkpoint", "control") or (kind, fields.get("level")) == ("log", "info"):
            return
        if kind == "progress" and self.phase == "student":
            return
        super().write(kind, **fields, rank=Rank.of_phase(os.environ).number)


def _say(error: Exception, job: Job, run: Run, events: EventWriter) -> int:
    """Write down what ended the phase; returns what the supervisor expects."""
    if is_out_of_memory(error):  # first: a file that could not be read for lack of memory is not damaged
        events.text(traceback.format_exc())
        events.log("warning", f"Memory ran out: {first_line(error)}", "out-of-memory")
        return EXIT_OUT_OF_MEMORY
    if isinstance(error, TokensDamaged):
        events.log("warning", error.paragraph(), "tokens-damaged")
        return EXIT_TOKENS_DAMAGED
    if isinstance(error, RankLost):
        events.log("warning", error.paragraph(), "rank-lost")
        return EXIT_RANK_LOST
    if isinstance(error, RecordsMissing):
        events.log("warning", error.paragraph(), "records-missing")
        return EXIT_RECORDS_MISSING
    if isinstance(error, BadNumbers) and _has_more_range(job, run):
        events.log("warning", error.paragraph(), "overflowed")
        return EXIT_OVERFLOWED
    events.text(traceback.format_exc())
    said = run.vanished() or (error if isinstance(error, TinyDistillError) else _in_our_words(error, job.name, run))
    said = _as_failure(said, run)
    events.write("error", what=said.what, why=said.why, todo=said.todo or _default_todo(said, run))
    return said.exit_code


def _has_more_range(job: Job, run: Run) -> bool:
    """Return whether the teacher computes in fp16, which overflows above 65,504, without a request by the user."""
    return isinstance(job, ScoreJob) and job.precision == "fp16" and "precision" not in run.info["asked"]


def _body(job: Job) -> Callable[[Run, Job, Channel], None]:
    """The code of a job's kind; imported late, so that a process loads only what it needs."""
    kind = KINDS[job.kind]
    body: Callable[[Run, Job, Channel], None] = getattr(import_module(kind.module), kind.function)
    return body


def _as_failure(error: TinyDistillError, run: Run) -> TinyDistillError:
    """A model that was read when the run was prepared and cannot be read now is no wrong request: the run failed."""
    if not isinstance(error, ModelError) or run.result("prepare") is None:
        return error
    return RunFailed(error.what, error.why, error.todo)


def _default_todo(error: TinyDistillError, run: Run) -> str:
    """A wrong request stays wrong when it is resumed."""
    return "" if isinstance(error, RequestError) else f"Continue: {resume_command(run.path)}"


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its type's name if it has no text."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


_SYSTEM_WORDS = {
    errno.EROFS: "The file system has become read-only, which many do when their disk fails.",
    errno.EIO: "The disk, or the network that it is reached through, failed.",
    errno.ESTALE: "The network file system was mounted again, or the file was removed on its server.",
    errno.EMFILE: "This process may have no more files open (ulimit -n).",
    errno.ENFILE: "The system has too many files open.",
    errno.EACCES: "The permissions of the file or of a folder above it do not allow it.",
    errno.ENODEV: "The file system cannot map files into memory.",
}


def _in_our_words(error: Exception, name: str, run: Run) -> TinyDistillError:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        where = error.filename or run.path
        needed, free = run.info["predicted"].get("disk_bytes", 0), shutil.disk_usage(run.path).free
        what = f"There was no room to write {where}; {free:,} bytes are free, and the whole run takes some {needed:,}."
        command = resume_command(run.path)
        said: TinyDistillError = no_room(what, error, kept="completed work is kept", then=f"then continue: {command}")
        said.todo = said.todo.removesuffix(".")  # it ends with a command
        return said
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        where = f" of {error.filename}" if error.filename else ""
        return TinyDistillError(
            f"The {name} phase ended: the system says {os.strerror(error.errno).lower()}{where}.",
            _SYSTEM_WORDS.get(error.errno, "The traceback is in run.log."),
            how_to_continue(run.path, "Fix that"),
        )
    return TinyDistillError(
        f"The {name} phase met something unexpected: {type(error).__name__}: {error}.",
        "The traceback is in run.log.",
        how_to_continue(run.path),
    )


def _die_with_parent(parent: int) -> None:
    """End when the supervisor is gone: in order if the next safe point comes soon, at once if it does not.

    Linux sends a SIGTERM when the parent dies, and the phase stops at its next safe point. Where that takes long (a
    model is loading, a large layer is read) a thread ends the process: everything that counts is on the disk, and a
    phase without a supervisor must not hold memory and the run's folder.
    """
    with contextlib.suppress(OSError, AttributeError):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, see prctl(2)
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM)
    threading.Thread(target=_watch_parent, args=(parent,), name="watch-parent", daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    time.sleep(_ORPHAN_SECONDS)
    os._exit(Stopped.exit_code)


def _offer_itself() -> None:
    """Where the kernel has to kill something for memory, let it be this process: a wave or a few steps are lost.

    Else it may choose a program of the user's, or the supervisor, which alone can restart it with less.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # no interpreter teardown: everything is on disk, and libraries' threads may hang in theirs
