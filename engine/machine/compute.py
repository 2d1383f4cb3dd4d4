"""The environment in which a process computes: its threads, the kernels that it keeps and the memory that it keeps.

A phase's process and the probe that measures this machine's rates get the same, for it decides what they reach.
"""

from __future__ import annotations

from engine.machine.allocator import allocator_environment
from engine.machine.kernels import kernels_environment

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""The variables that have the number of threads."""


def compute_environment(threads: int, *, keep_memory: bool) -> dict[str, str]:
    """The variables to add to the environment of a process that computes.

    Args:
        threads: of its matrix products and of all else.
        keep_memory: freed blocks stay in the process: see :mod:`engine.machine.allocator`.
    """
    return {
        **dict.fromkeys(THREADS, str(threads)),
        # Threads that wait spin by default, for some milliseconds, and take the cores from those that work as soon as
        # another program wants one: scoring on two busy cores was 4 times as fast with threads that sleep (41 s against
        # 10 s). A short spin is worth it: the parts of a small model's step come faster one after the other than a
        # thread wakes up. The demo's step took 0.42 s instead of 0.53 s, and its teacher 30 s instead of 36 s; with a
        # busy program on each of the two cores, 1.04 s instead of 1.06 s, and 75 s instead of 54 s.
        # Source: libgomp's manual, GOMP_SPINCOUNT.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
        **kernels_environment("student"),
        **allocator_environment(keep=keep_memory),
    }
