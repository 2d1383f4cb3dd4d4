"""Reading the memory of a phase from its events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def budgeted(event: Mapping[str, Any], name: str = "bytes") -> float | None:
    """Memory that a phase has taken of what its budget limits.

    Of a phase that computes on a GPU with memory of its own, that is the GPU's; else main memory, on a GPU that shares
    it too.

    Args:
        event: a ``memory`` or ``phase_finished`` event.
        name: "bytes" or "peak_bytes".

    Returns:
        Bytes; None where they are not known: some drivers do not report what a process holds.
    """
    size = event.get(f"device_{name}" if event.get("device") else name)
    return size if isinstance(size, int | float) and not isinstance(size, bool) else None
