"""The program in a pseudo-terminal of its own, for what only a real process can show."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_ESCAPES = re.compile(
    rb"\x1b(\[[0-9;?<>=:]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[P_^][^\x1b]*\x1b\\|[()][0-9A-B]|[=>78DEHM])"
)


@dataclass
class Terminal:
    """A process and everything it has written to its terminal so far."""

    process: subprocess.Popen[bytes]
    descriptor: int
    written: bytearray = field(default_factory=bytearray)

    def read(self, seconds: float) -> None:
        """Take what comes within so many seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select([self.descriptor], [], [], left)
            if not ready:
                return
            try:
                piece = os.read(self.descriptor, 65536)
            except OSError:
                return
            if not piece:
                return
            self.written += piece
            if b"\x1b[c" in piece or b"\x1b[?2026$p" in piece:
                with contextlib.suppress(OSError):
                    os.write(self.descriptor, b"\x1b[?2026;2$y")

    def wait_for(self, words: str, seconds: float = 120.0) -> None:
        """Wait until the words were written."""
        until = time.monotonic() + seconds
        while words not in self.text():
            if time.monotonic() > until or self.process.poll() is not None:
                self.read(0.2)
                if words in self.text():
                    return
                raise AssertionError(f"{words!r} was not written: {self.text()[-3000:]}")
            self.read(0.05)

    def text(self) -> str:
        """The written text, without the codes that move the cursor and set colours."""
        return _ESCAPES.sub(b"", bytes(self.written)).decode("utf-8", "replace")

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.descriptor, keys.encode())

    def wait(self, seconds: float = 120.0) -> int:
        """Wait until the process has ended; returns its exit code."""
        until = time.monotonic() + seconds
        while self.process.poll() is None:
            self.read(0.05)
            if time.monotonic() > until:
                raise AssertionError(f"still going: {self.text()[-2000:]}")
        self.read(0.1)
        return self.process.returncode


@contextlib.contextmanager
def terminal(
    words: Sequence[str], *, size: tuple[int, int] = (80, 24), code: str = "", **environment: str
) -> Iterator[Terminal]:
    """Run ``python -m tinydistill_tui WORDS``, or ``code``, in a terminal; killed at the end if it is still there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    process = subprocess.Popen(
        [sys.executable, *(["-c", code] if code else ["-m", "tinydistill_tui"]), *words],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True, close_fds=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(size[0]), "LINES": str(size[1]), **environment},
    )  # fmt: skip
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(master)
