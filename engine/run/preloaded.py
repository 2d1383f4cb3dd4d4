"""A process that has imported what every phase needs, and makes each phase out of itself by fork(2).

Importing torch and transformers takes seconds of a processor, and a run has three phases. With this process it is done
once: each phase is a copy that shares the imported memory, and begins within milliseconds. The last phase of a run is
no copy: the process itself becomes it, so that the largest phase has no second process beside it.

It does nothing until it gets a request. It ends with its supervisor: the kernel kills it, and the phase that it made
loses its parent, which ends it as the loss of a supervisor does. It is only used where it is safe (Linux, no GPU: CUDA
does not survive a fork) and where memory is roomy; else a phase is a program of its own (``python -m
engine.phases.process``).

The supervisor's side is :class:`Preloaded`, and never imports torch; the other side is :func:`serve`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Protocol

if sys.platform != "win32":
    import resource

from engine.jobs import Job
from engine.machine import safe_child
from engine.phase_kinds import KINDS

WAITING = "waiting"
"""Stands in its command where a phase has its name, and is as long as each of them: see :func:`_rename`."""

_IMPORTED_BYTES = 300 * 2**20  # what it holds beside a phase, if not one page of it were shared
_PHASE_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # Windows, where nothing is run, has two of them
)


@dataclass(frozen=True)
class Usage:
    """Resources that a process used: processor seconds, and pages that it touched for the first time."""

    user_seconds: float = 0.0
    system_seconds: float = 0.0
    minor_faults: int = 0

    @classmethod
    def of(cls, found: resource.struct_rusage) -> Usage:
        """As the system tells it."""
        return cls(found.ru_utime, found.ru_stime, found.ru_minflt)

    @classmethod
    def of_children(cls) -> Usage:
        """That of all children of this process that have ended."""
        return cls.of(resource.getrusage(resource.RUSAGE_CHILDREN))

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.user_seconds + other.user_seconds,
            self.system_seconds + other.system_seconds,
            self.minor_faults + other.minor_faults,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.user_seconds - other.user_seconds,
            self.system_seconds - other.system_seconds,
            self.minor_faults - other.minor_faults,
        )


class Child(Protocol):
    """A phase's process; most of it as :class:`subprocess.Popen` has it."""

    @property
    def pid(self) -> int | None:
        """Its number; None while it is about to begin."""

    @property
    def usage(self) -> Usage:
        """Return the resources that it used, after its end."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs; the number of a signal that ended it is negative."""

    def wait(self) -> int:
        """The same, when it has ended."""

    def send_signal(self, number: int) -> None:
        """Nothing is done where it has ended."""

    def kill(self) -> None:
        """End it at once."""


def is_worth_it(jobs: Sequence[Job], predicted: Mapping[str, Any]) -> bool:
    """Whether a run should have such a process: several jobs are to be done, and there is room for it.

    Args:
        jobs: those that are still to be done.
        predicted: what the plan says of each phase.
    """
    if not sys.platform.startswith("linux") or not all(job.where.is_host and job.keep_memory for job in jobs):
        return False
    peak = max((int(part["peak_bytes"]) for part in predicted.values() if isinstance(part, Mapping)), default=0)
    return len(jobs) > 1 and peak + _IMPORTED_BYTES <= min(job.memory_budget for job in jobs)


class Started:
    """A child process that only this process waits for.

    Args:
        process: it.
        told_before: of what it took, the part that its own children took and that was told before.
    """

    def __init__(self, process: subprocess.Popen[bytes], told_before: Usage | None = None) -> None:
        self._process = process
        self._before = Usage.of_children() + (told_before or Usage())
        self.pid = process.pid
        self.usage = Usage()

    def poll(self) -> int | None:
        """See :class:`Child`."""
        return self._process.poll()

    def wait(self) -> int:
        """See :class:`Child`."""
        code = self._process.wait()
        self.usage = Usage.of_children() - self._before
        return code

    def send_signal(self, number: int) -> None:
        """See :class:`Child`."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """See :class:`Child`."""
        self._process.kill()


class Preloaded:
    """The process as its supervisor sees it.

    Args:
        folder: the run's.
        environment: of the phases.
        log: takes what they write.
        pass_fds: descriptors that phases inherit.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str], log: IO[bytes], pass_fds: Sequence[int] = ()
    ) -> None:
        self.environment = dict(environment)
        self.told = Usage()  # of the phases that it made
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                safe_child.command(
                    "engine.phases.process", WAITING, str(folder), str(os.getpid()), str(theirs.fileno())
                ),
                pass_fds=(*pass_fds, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        self._socket = ours
        self._lines = b""

    def begin(self, phase: str, *, is_last: bool) -> Child | None:
        """Let a phase begin; None where the process is gone."""
        if self._process.poll() is not None or not self._tell(phase, is_last):
            return None
        return Started(self._process, self.told) if is_last else _Forked(self)

    def end(self) -> None:
        """End the process; a phase that it made has ended before, or ends with it."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def answer(self, timeout_seconds: float = 0.0) -> dict[str, Any] | None:
        """Its next answer, or None where there is none yet.

        Raises:
            EOFError: it is gone.
        """
        while b"\n" not in self._lines:
            if not select.select([self._socket], [], [], timeout_seconds)[0]:
                return None
            try:
                more = self._socket.recv(4096)
            except OSError:
                more = b""
            if not more:
                raise EOFError
            self._lines += more
        line, _, self._lines = self._lines.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _tell(self, phase: str, is_last: bool) -> bool:
        try:
            self._socket.sendall(json.dumps({"phase": phase, "is_last": is_last}).encode() + b"\n")
        except OSError:
            return False
        return True


class _Forked:
    """A phase that the process has made; its parent is the process, not the supervisor."""

    def __init__(self, made_by: Preloaded) -> None:
        self._made_by = made_by
        self._pid: int | None = None
        self._code: int | None = None
        self._waiting: list[int] = []
        self.usage = Usage()

    @property
    def pid(self) -> int | None:
        return self._pid

    def poll(self) -> int | None:
        return self._code if self._code is not None else self._hear(0.0)

    def wait(self) -> int:
        while (code := self._code if self._code is not None else self._hear(0.1)) is None:
            pass
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is not None:
            return
        if self._pid is None:
            self._waiting.append(number)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        if self._pid is None and self._code is None:
            self._made_by.end()
            self._code = -signal.SIGKILL

    def _hear(self, timeout_seconds: float) -> int | None:
        try:
            told = self._made_by.answer(timeout_seconds)
        except EOFError:
            # Its maker was killed. The phase has noticed, and stops at its next safe point.
            if self._pid is not None and _is_alive(self._pid):
                time.sleep(timeout_seconds)
                return None
            self._code = -signal.SIGKILL
            return self._code
        if told is not None and "pid" in told:
            self._pid = int(told["pid"])
            for number in self._waiting:
                self.send_signal(number)
        elif told is not None:
            self._code = int(told["code"])
            self.usage = Usage(*told["usage"])
            self._made_by.told += self.usage
        return self._code


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def serve(supervisor: int, descriptor: int) -> tuple[str, int] | None:
    """Import what phases need, then make those that are asked for; for the main thread of a process of its own.

    Signals are held back from here on, and it is the phase that lets them in, when it can hear them.

    Returns:
        In a process that is to be a phase: its name and its parent. None in the process that waits, at its end.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _PHASE_SIGNALS)
    _killed_with_parent()
    if os.getppid() != supervisor:
        return None
    _import_what_phases_need()
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rb") as requests:
        for line in requests:
            request = json.loads(line)
            phase = str(request["phase"])
            if request["is_last"]:
                _rename(phase)
                return phase, supervisor
            made_by = os.getpid()
            with warnings.catch_warnings():
                # Threads are those of libraries that look after themselves when the process is copied (OpenBLAS).
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                _rename(phase)
                return phase, made_by
            _answer(connection, pid=pid)
            _, status, spent = os.wait4(pid, 0)
            usage = Usage.of(spent)
            _answer(
                connection,
                code=os.waitstatus_to_exitcode(status),
                usage=[usage.user_seconds, usage.system_seconds, usage.minor_faults],
            )
    return None


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Hold back the signals of a phase that is started in here, until it calls :func:`let_signals_in`.

    A process inherits the signals that its parent holds back. Without this, a pause that arrives before the phase
    handles signals would end it: SIGUSR1 does so by default.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PHASE_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_signals_in() -> None:
    """Handle a phase's signals; those that arrived since its process began are delivered now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PHASE_SIGNALS)


def _answer(connection: socket.socket, **fields: Any) -> None:
    with contextlib.suppress(OSError):  # the supervisor is gone, and with it this process
        connection.sendall(json.dumps(fields).encode() + b"\n")


def _import_what_phases_need() -> None:
    gc.disable()  # nothing of it is ever let go of
    import engine.data.tokenise
    import engine.models.fit
    import engine.models.load
    import engine.teacher.depth
    import engine.teacher.score  # noqa: F401
    from engine.models.memory import trim_heap

    for kind in KINDS.values():
        import_module(kind.module)
    trim_heap()  # what imports leave free at the end of the heap would be every phase's
    gc.freeze()  # a collection neither looks through what was imported nor copies its pages into a phase
    gc.enable()


def _killed_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, see prctl(2)
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)


def _rename(phase: str) -> None:
    """Show the phase in the process's command line, as ps lists it. It is as long as the word before it.

    The kernel shows a process's arguments out of its own memory, so they are overwritten there.
    Source: proc_pid_cmdline(5), and ``arg_start`` in proc_pid_stat(5).
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        command = Path("/proc/self/cmdline").read_bytes()
        place = command.index(b"\0" + WAITING.encode() + b"\0") + 1
        fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        arg_start = int(fields[45])
        if arg_start and len(phase) == len(WAITING):
            ctypes.memmove(arg_start + place, phase.encode(), len(phase))
