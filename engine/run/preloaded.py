"""A process that has imported what every phase needs, and makes each phase out of itself by fork(2).

Importing torch and transformers takes seconds of a processor, and a run has three phases, some of them on several
ranks. With this process it is done once: each phase, and each rank of one, is a copy that shares the imported memory,
and begins within milliseconds. The last phase of a run is no copy, unless several ranks do it: the process itself
becomes it, so that the largest phase has no second process beside it.

It does nothing until it gets a request. It ends with its supervisor: the kernel kills it, and the phase that it made
loses its parent, which ends it as the loss of a supervisor does. It is only used where it is safe (Linux, no GPU: CUDA
does not survive a fork) and where memory is roomy; else a phase is a program of its own (``python -m
engine.phases.process``).

Copies differ in the variables with a rank's number, and in their number of threads. All other variables of
the environment are read while libraries are imported, so they have to be the same.

The supervisor's side is :class:`Preloaded`, and never imports torch; the other side is :func:`serve`. They send each
other lines of JSON::

    {"number": 3, "phase": "teacher", "is_last": false, "environment": {"RANK": "1", …}}     begin a phase
    {"number": 3, "pid": 4711}                                                               it has begun
    {"number": 3, "code": 0, "usage": [12.3, 0.4, 20512]}                                    it has ended
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
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from engine.channel.control import ENDING_SIGNALS, PAUSING_SIGNALS
from engine.jobs import Job
from engine.machine import safe_child
from engine.machine.compute import THREADS
from engine.phase_kinds import KINDS
from engine.ranks import VARIABLES
from engine.run.child import Child, Started, Usage

WAITING = "waiting"
"""Stands in its command where a phase has its name, and is as long as each of them: see :func:`_rename`."""

_LOOK_SECONDS = 0.05  # how often a process looks whether a copy has ended
_OF_EACH = (*VARIABLES, *THREADS)  # variables that may differ between phases
_IMPORTED_BYTES = 300 * 2**20  # what it holds beside a phase, if not one page of it were shared
_PHASE_SIGNALS = (signal.SIGINT, *ENDING_SIGNALS, *PAUSING_SIGNALS)


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


class _Link:
    """One end of the connection between a supervisor and the process that phases are made from.

    Args:
        connection: its socket, which is closed with it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._bytes = b""

    def send(self, **fields: Any) -> bool:
        """Send a line; False where the other side is gone."""
        try:
            self._socket.sendall(json.dumps(fields).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self, timeout_seconds: float | None) -> dict[str, Any] | None:
        """Return the next line, or None where there is none yet; without a limit it waits.

        Raises:
            EOFError: the other side is gone, or this one is closed.
        """
        while b"\n" not in self._bytes:
            if self._socket.fileno() < 0:
                raise EOFError
            if not select.select([self._socket], [], [], timeout_seconds)[0]:
                return None
            try:
                more = self._socket.recv(4096)
            except OSError:
                more = b""
            if not more:
                raise EOFError
            self._bytes += more
        line, _, self._bytes = self._bytes.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


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
        self.told = Usage()  # of the phases that it made
        self._environment = dict(environment)
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
                env=self._environment,
            )
        self._link = _Link(ours)
        self._begun = 0
        self._answers: dict[int, deque[dict[str, Any]]] = {}

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Return whether a process with this environment can be made from it."""
        return _of_all(environment) == _of_all(self._environment)

    def begin(self, phase: str, environment: Mapping[str, str], *, is_last: bool) -> Child | None:
        """Let a phase, or a rank of one, begin; None where the process is gone.

        Args:
            phase: its name.
            environment: of it; :meth:`suits` has to be true.
            is_last: whether the process itself becomes it. No other one may run or begin then.
        """
        own = {name: environment.get(name) for name in _OF_EACH}
        number = self._begun
        if self._process.poll() is not None or not self._link.send(
            number=number, phase=phase, is_last=is_last, environment=own
        ):
            return None
        self._begun += 1
        if is_last:
            self._link.close()  # it reads what was sent all the same
            return Started(self._process, self.told)
        self._answers[number] = deque()
        return _Forked(self, number)

    def end(self) -> None:
        """End the process; a phase that it made has ended before, or ends with it."""
        self._link.close()
        self._process.kill()
        self._process.wait()

    def answer(self, number: int, timeout_seconds: float = 0.0) -> dict[str, Any] | None:
        """Its next answer about a phase, or None where there is none yet.

        Raises:
            EOFError: it is gone.
        """
        while not self._answers[number]:
            told = self._link.receive(timeout_seconds)
            if told is None:
                return None
            self._answers[int(told["number"])].append(told)
        return self._answers[number].popleft()


class _Forked:
    """A phase that the process has made; its parent is the process, not the supervisor."""

    def __init__(self, made_by: Preloaded, number: int) -> None:
        self._made_by = made_by
        self._number = number
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
            told = self._made_by.answer(self._number, timeout_seconds)
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


def _of_all(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _OF_EACH}


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
    link = _Link(socket.socket(fileno=descriptor))
    children: dict[int, int] = {}  # the numbers of their requests
    while True:
        try:
            request = link.receive(_LOOK_SECONDS if children else None)
        except EOFError:
            return None
        _tell_ended(link, children)
        if request is None:
            continue
        made_by = os.getpid()
        pid = 0 if request["is_last"] else _copy()
        if pid == 0:
            link.close()
            return _become(request), supervisor if request["is_last"] else made_by
        children[pid] = request["number"]
        link.send(number=request["number"], pid=pid)


def _copy() -> int:
    with warnings.catch_warnings():
        # Threads are those of libraries that look after themselves when the process is copied (OpenBLAS).
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _become(request: Mapping[str, Any]) -> str:
    """Be the process of a phase; return its name."""
    import torch

    _rename(request["phase"])
    for name, value in request["environment"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # OpenMP has read the variable already
    return str(request["phase"])


def _tell_ended(link: _Link, children: dict[int, int]) -> None:
    for pid, number in list(children.items()):
        found, status, spent = os.wait4(pid, os.WNOHANG)
        if not found:
            continue
        del children[pid]
        usage = Usage.of(spent)
        link.send(
            number=number,
            code=os.waitstatus_to_exitcode(status),
            usage=[usage.user_seconds, usage.system_seconds, usage.minor_faults],
        )


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
