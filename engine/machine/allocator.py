"""Treatment of freed memory by the C library of a phase's process: kept for the next step, or returned.

Both ways are glibc's own (mallopt(3)); other C libraries ignore these variables. A process reads them when it starts,
so the code that starts a phase calls this. This file decides nothing: the planner does, by the budget.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

MAPPED_FROM_BYTES = 2**20
"""Size from which a block is mapped by itself where memory is handed back.

glibc raises this limit to 32 MiB by itself: then what is small and stays sits in the holes that blocks of logits leave,
and each new block needs new memory (measured: scoring 4,000 tokens grew to 2.0 GB instead of 0.3).
"""
_KEPT = {
    # No block is mapped by itself. (A threshold above 32 MiB would say the same; glibc before 2.35 refuses it.)
    "MALLOC_MMAP_MAX_": "0",
    # Free memory at the end of the heap stays; at its seams a phase hands it back by itself (engine.models.memory).
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    # Two arenas, the main thread's and one for all that read ahead: each has free memory of its own.
    "MALLOC_ARENA_MAX": "2",
}
_TUNABLES = "GLIBC_TUNABLES"
# No lists of small freed blocks. A block in such a list is not joined with its free neighbours, and activations lie
# between many of them: two steps of an adapter of SmolLM2 (two micro-batches of 4 × 128) took 2,152 to 2,332 MiB, and
# 1,905 without these lists. Small operations of torch took as long as before.
_JOINED = ("glibc.malloc.tcache_count=0", "glibc.malloc.mxfast=0")


def allocator_environment(*, keep: bool) -> dict[str, str]:
    """The variables to add to a phase's environment.

    Pages of 2 MiB (glibc's ``hugetlb`` tunable) are not asked for. A step that finds the memory of the step before has
    next to no faults, and the first touch of so large a page took five times as long as that of small ones.

    Args:
        keep: keep freed blocks in the process. A step then finds the memory of the step before. Handed back, every
            block is filled with zeros by the system once more, 4 KiB at a time: half of the demo's time on two cores.
    """
    kept = _KEPT if keep else {"MALLOC_MMAP_THRESHOLD_": str(MAPPED_FROM_BYTES)}
    return {**kept, _TUNABLES: _tunables(os.environ.get(_TUNABLES, ""))}


def _tunables(given: str) -> str:
    """The tunables that the user has set, and ours where these say nothing else."""
    own = [text for text in given.split(":") if text]
    names = {text.partition("=")[0] for text in own}
    return ":".join([*own, *(text for text in _JOINED if text.partition("=")[0] not in names)])


def keeps_memory(environment: Mapping[str, str]) -> bool:
    """Return whether a process with this environment was started to keep freed blocks."""
    return _KEPT.items() <= environment.items()
