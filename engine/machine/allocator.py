"""Treatment of freed memory by the C library of a phase's process: kept for the next step, or returned.

Both ways are glibc's own (mallopt(3)); other C libraries ignore these variables. A process reads them when it starts,
so the code that starts a phase calls this. This file decides nothing: the planner does, by the budget.
"""

from __future__ import annotations

from collections.abc import Mapping

MAPPED_FROM_BYTES = 2**20
"""Size from which a block is mapped by itself where memory is handed back.

glibc raises this limit to 32 MiB by itself: then what is small and stays sits in the holes that blocks of logits leave,
and each new block needs new memory (measured: scoring 4,000 tokens grew to 2.0 GB instead of 0.3).
"""
# Free memory at the end of the heap stays; at its seams a phase hands it back by itself (engine.models.memory).
_NEVER_TRIMMED = 2**62


def allocator_environment(*, keep: bool) -> dict[str, str]:
    """The variables to add to a phase's environment.

    Pages of 2 MiB (glibc's ``hugetlb`` tunable) are not asked for. A step that finds the memory of the step before has
    next to no faults, and the first touch of so large a page took five times as long as that of small ones.

    Args:
        keep: keep freed blocks in the process. A step then finds the memory of the step before. Handed back, every
            block is filled with zeros by the system once more, 4 KiB at a time: half of the demo's time on two cores.
    """
    if not keep:
        return {"MALLOC_MMAP_THRESHOLD_": str(MAPPED_FROM_BYTES)}
    return {
        # No block is mapped by itself. (A threshold above 32 MiB would say the same; glibc before 2.35 refuses it.)
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(_NEVER_TRIMMED),
        # Two arenas, the main thread's and one for all that read ahead: each has free memory of its own.
        "MALLOC_ARENA_MAX": "2",
    }


def keeps_memory(environment: Mapping[str, str]) -> bool:
    """Return whether a process with this environment was started to keep freed blocks."""
    return allocator_environment(keep=True).items() <= environment.items()
