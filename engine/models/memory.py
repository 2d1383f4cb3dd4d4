"""Giving freed memory back to the system.

glibc keeps freed blocks below a surviving one for later: a loop over many tensors can leave hundreds of megabytes in
the process that nothing uses (measured: 246 MB, and 1 MB after ``malloc_trim``). Peaks are this program's promise, so
phases call this at their seams.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
from collections.abc import Callable

from engine.machine.allocator import keeps_memory


def return_memory() -> None:
    """Collect garbage, and hand free heap pages back to the system where the C library can."""
    gc.collect()
    trim_heap()


def return_memory_if_scarce() -> None:
    """The same between parts of a phase that take turns, unless the process keeps its memory for the next part.

    Each page that was handed back is filled with zeros by the system when the next step takes it.
    """
    if not keeps_memory(os.environ):
        return_memory()


def trim_heap() -> None:
    """Only hand free heap pages back: cheap enough (milliseconds) to be called between two layers."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
