"""Several processes that do one phase together, for the supervisor as if they were one.

The ranks of a scoring work side by side: a killed one is started again, and the others continue. The ranks of a
training wait for each other in every step, so that they end together: where one has failed, the others get a moment to
end by themselves.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence

from engine.errors import EXIT_OUT_OF_MEMORY, EXIT_RANK_LOST, Stopped
from engine.ranks import Rank
from engine.run.child import Child, Started, Usage
from engine.run.launched import Elsewhere

GRACE_SECONDS = 20.0
"""For the ranks of a training after one has ended with an error: a step and the message about it."""


class Crew:
    """The processes of a phase, most of it as :class:`engine.run.child.Child` has it.

    Args:
        ranks: one process each.
        start: starts the process of a rank.
        waits_for_all: whether the ranks cannot continue without each other.
        again: asked with the rank and the exit code of a process that has failed; True starts it again.

    Attributes:
        silent: ranks that did not end by themselves after another one had failed.
    """

    def __init__(
        self,
        ranks: Sequence[Rank],
        start: Callable[[Rank], Child],
        *,
        waits_for_all: bool,
        again: Callable[[Rank, int], bool],
    ) -> None:
        self._before = Usage.of_children()
        self._of_copies = Usage()  # processes that are no children of this one
        self._start = start
        self._again = again
        self._waits_for_all = waits_for_all
        self._codes: dict[Rank, int] = {}
        self._failed_at: float | None = None
        self.silent: list[int] = []
        self.usage = Usage()
        self._children: dict[Rank, Child] = {}
        for rank in ranks:
            self._children[rank] = start(rank)

    @property
    def pids(self) -> dict[int, int]:
        """The processes that run, by the number of their rank."""
        return {
            rank.number: child.pid
            for rank, child in self._children.items()
            if rank not in self._codes and child.pid is not None
        }

    @property
    def elsewhere(self) -> dict[int, int]:
        """The memory of processes that another rank's process has started, by the number of their rank."""
        return {
            rank.number: child.memory_bytes
            for rank, child in self._children.items()
            if rank not in self._codes and isinstance(child, Elsewhere)
        }

    def poll(self) -> int | None:
        """The exit code that says most about the phase, when all have ended."""
        for rank, child in self._children.items():
            if rank in self._codes or (code := child.poll()) is None:
                continue
            child.wait()
            if not isinstance(child, Started):
                self._of_copies += child.usage
            if code != 0 and self._again(rank, code):
                self._children[rank] = self._start(rank)
                continue
            self._codes[rank] = code
            if code != 0 and self._failed_at is None:
                self._failed_at = time.monotonic()
        if len(self._codes) == len(self._children):
            self.usage = Usage.of_children() - self._before + self._of_copies
            return self._code()
        if self._waits_for_all and self._failed_at is not None:
            self._end_the_silent(self._failed_at)
        return None

    def wait(self) -> int:
        """The same, when all have ended."""
        while (code := self.poll()) is None:
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """To all."""
        for rank, child in self._children.items():
            if rank not in self._codes:
                child.send_signal(number)

    def kill(self) -> None:
        """End all at once."""
        self._again = lambda rank, code: False
        self.send_signal(signal.SIGKILL)

    def _end_the_silent(self, failed_at: float) -> None:
        if time.monotonic() - failed_at < GRACE_SECONDS:
            return
        for rank, child in self._children.items():
            if rank not in self._codes and rank.number not in self.silent:
                self.silent.append(rank.number)
                child.kill()

    def _code(self) -> int:
        failed = {rank.number: code for rank, code in self._codes.items() if code != 0}
        # A rank that misses another one says nothing about the cause; nor does one that was killed for its silence.
        causes = [code for number, code in failed.items() if code != EXIT_RANK_LOST and number not in self.silent]
        for first in (EXIT_OUT_OF_MEMORY, -signal.SIGKILL):
            if first in causes:
                return first
        others = [code for code in causes if code != Stopped.exit_code] or causes
        return others[0] if others else (EXIT_RANK_LOST if failed else 0)
