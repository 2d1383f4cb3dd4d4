"""The process of a rank that a launcher has started: it waits for the supervisor's calls and starts phases.

It ends with the exit code of the run. Rank 0 has no agent: its process starts the supervisor. The files between them
are described in :mod:`engine.run.launched`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from engine.errors import Stopped
from engine.machine import process_memory, safe_child
from engine.run import control, preloaded
from engine.run.folder import Run
from engine.run.launched import Launch, call_file, rank_file, read, write
from engine.run.phase_environment import environment_for

_POLL_SECONDS = 0.2
_BEAT_SECONDS = 1.0
_PATIENCE_SECONDS = 10.0  # of a phase that was asked to stop, before it is killed
_STOPPING_SECONDS = 25.0  # for all ranks to end together; torchrun kills its processes 30 seconds after Ctrl+C


@dataclass
class Agent:
    """Serves a run until it ends.

    Attributes:
        folder: the run's, which rank 0 makes.
        launch: of this process.
    """

    folder: Path
    launch: Launch
    _child: subprocess.Popen[bytes] | None = None
    _call: int = 0
    _sent: int = 0
    _beat: int = 0
    _told: float = 0.0
    _asked: int = 0
    _asked_at: float = 0.0

    def serve(self) -> int:
        """Work until the run has ended; return its exit code.

        Raises:
            FolderGone: the run's folder is not there any more.
        """
        for number in control.STOPPING_SIGNALS:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._heard)
        parent = os.getppid()
        try:
            while True:
                end = read(self.folder / "ranks" / "end.json", self.launch)
                if end is not None:
                    return int(end["code"])
                if self._leaves() or os.getppid() != parent:
                    return Stopped.exit_code
                if self._call and (gone := Run(self.folder, {}).vanished()) is not None:
                    raise gone
                self._listen()
                time.sleep(_POLL_SECONDS)
        finally:
            self._end_child()

    def _leaves(self) -> bool:
        """Whether this process ends before the run does; the first signal to end asks the run to stop.

        All ranks stop after the same step then. A rank that left at once would be missed by the others.
        """
        if not self._asked:
            return False
        if not self._call:  # there may be no run yet
            return True
        if not self._asked_at:
            self._asked_at = time.monotonic()
            with contextlib.suppress(OSError):  # rank 0 has heard of it too, as a rule
                control.request(self.folder, "stop", by=f"rank {self.launch.rank.number}")
        return self._asked > 1 or time.monotonic() - self._asked_at > _STOPPING_SECONDS

    def _listen(self) -> None:
        call = read(call_file(self.folder, self.launch.rank.number), self.launch)
        if call is not None and call["call"] != self._call:
            self._end_child()
            self._call, self._sent = call["call"], 0
            self._start(call)
        if self._child is None:
            return
        for number in (call or {}).get("signals", [])[self._sent :]:
            self._sent += 1
            self._child.send_signal(number)
        code = self._child.poll()
        if code is not None:
            if self._tell(code):
                self._child = None
        elif time.monotonic() - self._told > _BEAT_SECONDS:
            self._tell(None)

    def _start(self, call: dict[str, Any]) -> None:
        run = Run.open(self.folder)
        environment = environment_for(
            run.job(str(call["phase"])), self.launch.rank, call["meeting"], local_world=self.launch.local_world
        )
        with run.log_path.open("ab") as log, preloaded.signals_held_back():
            self._child = subprocess.Popen(
                safe_child.command("engine.phases.process", str(call["phase"]), str(run.path), str(os.getpid())),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def _tell(self, code: int | None) -> bool:
        self._beat += 1
        self._told = time.monotonic()
        assert self._child is not None
        used = 0 if code is not None else process_memory.memory_of_tree(self._child.pid)
        path = rank_file(self.folder, self.launch.rank.number)
        return write(path, self.launch, call=self._call, beat=self._beat, bytes=used, code=code)

    def _end_child(self) -> None:
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._tell(self._child.returncode)  # the supervisor need not wait until this rank seems silent
        self._child = None

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        self._asked += 1
