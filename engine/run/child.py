"""The process of a phase as the supervisor sees it: its number, its end, and the resources that it took."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Protocol

if sys.platform != "win32":
    import resource


@dataclass(frozen=True)
class Usage:
    """Resources that a process used: processor seconds, and pages that it touched for the first time."""

    user_seconds: float = 0.0
    system_seconds: float = 0.0
    minor_faults: int = 0

    @classmethod
    def of(cls, found: resource.struct_rusage) -> Usage:
        """As the system reports it."""
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


class Started:
    """A child process that only this process waits for.

    Args:
        process: it.
        told_before: the part that its own children took, which was reported before.
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
