"""A hard memory limit for a child process, the way a container sets it: a memory control group, v1 or v2.

    with MemoryCap.make(700 * 10**6) as cap:
        subprocess.run(command, preexec_fn=cap.enter)

Everything that the group's processes hold counts, file pages too; the kernel takes back what it can, and kills when
that is not enough. Making a group needs rights that a plain user or a container often lacks: :meth:`MemoryCap.make`
says so with ``CannotCap``.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.machine.cgroup import _groups  # the same reading of /proc that the program itself relies on


class CannotCap(Exception):
    """No group with a memory limit can be made here."""


@dataclass(frozen=True)
class MemoryCap:
    """A group with a limit, and no process yet.

    Attributes:
        folder: of the group.
        version: 1 or 2.
        limit_bytes: the most that its processes may hold together; nothing is swapped.
    """

    folder: Path
    version: int
    limit_bytes: int

    @classmethod
    def make(cls, limit_bytes: int) -> MemoryCap:
        """Make a group below this process's own, or as near to it as the hierarchy allows.

        Raises:
            CannotCap: there is no such hierarchy, or it may not be written.
        """
        for parent, version in _groups(Path("/")):
            folder = parent / f"tinydistill-{uuid.uuid4().hex[:8]}"
            try:
                folder.mkdir()
            except OSError:
                continue
            cap = cls(folder, version, limit_bytes)
            try:
                cap._limit()
            except OSError:
                cap.close()
                continue
            return cap
        raise CannotCap("no memory control group can be made here")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def enter(self) -> None:
        """Put the calling process into the group; for ``preexec_fn``."""
        (self.folder / "cgroup.procs").write_text("0")

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed for the limit."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        words = dict(line.split() for line in (self.folder / name).read_text().splitlines())
        return int(words.get("oom_kill", 0))

    def close(self) -> None:
        """Remove the group; its processes must have ended."""
        for _ in range(50):
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.1)

    def _limit(self) -> None:
        if self.version == 2:
            if not (self.folder / "memory.max").exists():
                (self.folder.parent / "cgroup.subtree_control").write_text("+memory")
            (self.folder / "memory.max").write_text(str(self.limit_bytes))
            with contextlib.suppress(OSError):  # a kernel without swap accounting
                (self.folder / "memory.swap.max").write_text("0")
            return
        (self.folder / "memory.limit_in_bytes").write_text(str(self.limit_bytes))
        with contextlib.suppress(OSError):
            (self.folder / "memory.memsw.limit_in_bytes").write_text(str(self.limit_bytes))
        if (self.folder / "memory.memsw.limit_in_bytes").exists():
            return
        with contextlib.suppress(OSError):
            (self.folder / "memory.swappiness").write_text("0")


def can_cap() -> bool:
    """Whether a group can be made here; makes one and removes it."""
    try:
        MemoryCap.make(2**30).close()
    except CannotCap:
        return False
    return os.name == "posix"
