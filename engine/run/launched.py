"""Ranks that a launcher has started (torchrun, accelerate launch), perhaps on several machines.

Rank 0's process starts the run and its supervisor. Each other rank's process waits in the run's folder, which all
machines share, until the supervisor calls it to a phase; it starts the phase's process on its machine and reports its
state (:mod:`engine.run.agent`). They communicate by small files, each written by one process::

    ranks/call-00001.json   to rank 1: begin this phase, or send it a signal
    ranks/rank-00001.json   from rank 1: the call that it works on, the process's memory, its exit code
    ranks/end.json          to all: the run has ended, with this exit code
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.disk.files import make_folder, write_atomic
from engine.errors import DiskFull, RequestError
from engine.ranks import Rank
from engine.run.child import Usage

_SILENT_SECONDS = 60.0  # a file on another machine may be seen some seconds late
_LAUNCHER = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True)
class Launch:
    """A process's place among those that a launcher has started.

    Attributes:
        rank: of the process.
        local_world: processes on this machine.
        name: of this start; files of an earlier one do not count.
        address: of rank 0's machine.
    """

    rank: Rank
    local_world: int
    name: str
    address: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Launch | None:
        """The launch that this process is part of; None for a process of its own.

        Raises:
            RequestError: the launcher's variables are no numbers, or name no rank.
        """
        if _LAUNCHER not in environment:
            return None
        try:
            rank = Rank(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
            local_world = int(environment.get("LOCAL_WORLD_SIZE", rank.world))
            if not (0 <= rank.number < rank.world and 0 < local_world <= rank.world):
                raise ValueError(f"rank {rank.number} of {rank.world}, of which {local_world} are on this machine")
        except (KeyError, ValueError) as error:
            raise RequestError(
                f"{_LAUNCHER} is set, as a launcher does, but RANK and WORLD_SIZE do not name a rank ({error}).",
                "Ranks are counted from 0 and are below the number of all.",
                f"Start it by torchrun --nproc_per_node N -m engine [flags], or unset {_LAUNCHER}.",
            ) from error
        if rank.world == 1:
            return None
        parts = (
            environment[_LAUNCHER],
            environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
            environment.get("MASTER_PORT", ""),
        )
        return cls(rank, local_world, "-".join(parts), environment.get("MASTER_ADDR", "127.0.0.1"))

    def meeting(self) -> str:
        """An address on rank 0's machine where the ranks of a training meet."""
        with socket.socket() as found:
            found.bind(("", 0))
            return f"tcp://{self.address}:{found.getsockname()[1]}"


def tell_end(run: Path, launch: Launch, code: int, *, patience_seconds: float = _SILENT_SECONDS) -> None:
    """Let the other ranks end with this exit code.

    Args:
        run: the run's folder.
        launch: of this process.
        code: of the run.
        patience_seconds: for a disk that does not take the file. After it, the launcher has to end the other ranks.
    """
    until = time.monotonic() + patience_seconds
    while not write(run / "ranks" / "end.json", launch, code=code) and time.monotonic() < until:
        time.sleep(min(1.0, patience_seconds))


def read(path: Path, launch: Launch) -> dict[str, Any] | None:
    """A file of this launch; None where there is none yet."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("launch") == launch.name else None


def write(path: Path, launch: Launch, **fields: Any) -> bool:
    """Replace a file of this launch.

    Returns:
        False where the disk did not take it (it is full, or a network's server is away): the old file is unchanged, and
        the caller tries again. A process that ended here would take its phase with it.
    """
    try:
        make_folder(path.parent, parents=False)
        write_atomic(path, json.dumps({"launch": launch.name, **fields}) + "\n")
    except (DiskFull, OSError):
        return False
    return True


def call_file(run: Path, rank: int) -> Path:
    """The supervisor's words to a rank."""
    return run / "ranks" / f"call-{rank:05d}.json"


def rank_file(run: Path, rank: int) -> Path:
    """A rank's words to the supervisor."""
    return run / "ranks" / f"rank-{rank:05d}.json"


@dataclass
class Elsewhere:
    """A phase's process that another rank's process has started; as :class:`engine.run.child.Child`.

    Attributes:
        pid: None, as it may be on another machine.
        usage: unknown here.
        memory_bytes: as last reported.
    """

    run: Path
    launch: Launch
    rank: Rank
    phase: str
    meeting: str | None
    pid: int | None = None
    usage: Usage = field(default_factory=Usage)
    memory_bytes: int = 0
    _signals: list[int] = field(default_factory=list)
    _is_told: bool = False
    _heard: tuple[int, float] = (-1, 0.0)

    def __post_init__(self) -> None:
        self._call = time.time_ns()
        self._heard = (-1, time.monotonic())
        self._tell()

    def poll(self) -> int | None:
        """The exit code; that of a killed process where its machine is silent."""
        if not self._is_told:
            self._tell()
        found = read(rank_file(self.run, self.rank.number), self.launch)
        if found is not None and found.get("call") == self._call:
            self.memory_bytes = int(found.get("bytes") or 0)
            if found.get("code") is not None:
                return int(found["code"])
            if found.get("beat") != self._heard[0]:
                self._heard = (int(found["beat"]), time.monotonic())
        if time.monotonic() - self._heard[1] > _SILENT_SECONDS:
            return -signal.SIGKILL
        return None

    def wait(self) -> int:
        """The same, when it has ended."""
        while (code := self.poll()) is None:
            time.sleep(0.1)
        return code

    def send_signal(self, number: int) -> None:
        """Ask for a signal to it; several are sent in order."""
        self._signals.append(int(number))
        self._tell()

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _tell(self) -> None:
        self._is_told = write(
            call_file(self.run, self.rank.number),
            self.launch,
            call=self._call,
            phase=self.phase,
            meeting=self.meeting,
            signals=self._signals,
            supervisor=os.getpid(),
        )
