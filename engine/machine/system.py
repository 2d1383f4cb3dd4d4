"""Which operating systems a run works on, and which figures each of them lacks."""

from __future__ import annotations

import sys

from engine.errors import RequestError


def require() -> None:
    """Refuse a system that a run cannot work on.

    Raises:
        RequestError: it is Windows.
    """
    if sys.platform in ("win32", "cygwin"):
        raise RequestError(
            "TinyDistill needs Linux, macOS or WSL; this is Windows.",
            "A run's processes are paused and stopped by signals, and its files locked, as Windows does not do it.",
            "Install WSL (wsl --install), and TinyDistill in it; a GPU works there too.",
        )
