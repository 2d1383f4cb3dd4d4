"""The environment in which a process computes: its threads, the kernels that it keeps and the memory that it keeps.

A phase's process and the probe that measures this machine's rates get the same, for it decides what they reach.
"""

from __future__ import annotations

import os

from engine.machine.allocator import allocator_environment
from engine.machine.kernels import kernels_environment

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""The variables that have the number of threads."""

SLEEPING_THREADS = {
    # Threads that wait spin by default, for some milliseconds, and take the cores from those that work as soon as
    # another program wants one: scoring on two busy cores was 4 times as fast with threads that sleep (41 s against
    # 10 s). A short spin is worth it: the parts of a small model's step come faster one after the other than a
    # thread wakes up. The demo's step took 0.42 s instead of 0.53 s, and its teacher 30 s instead of 36 s; with a
    # busy program on each of the two cores, 1.04 s instead of 1.06 s, and 75 s instead of 54 s.
    # Source: libgomp's manual, GOMP_SPINCOUNT.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "10000",
}
"""The variables with which threads sleep while they wait."""


def let_threads_sleep() -> None:
    """Have the threads of this process sleep while they wait, unless the user's environment says how they wait.

    For a command that computes in its own process; call it before torch is imported. On two busy cores,
    tiny-distill-eval took 19 s of processor time instead of 36 s.
    """
    for name, value in SLEEPING_THREADS.items():
        os.environ.setdefault(name, value)


def compute_environment(threads: int, *, keep_memory: bool) -> dict[str, str]:
    """The variables to add to the environment of a process that computes.

    Args:
        threads: of its matrix products and of all else.
        keep_memory: freed blocks stay in the process: see :mod:`engine.machine.allocator`.
    """
    return {
        **dict.fromkeys(THREADS, str(threads)),
        **SLEEPING_THREADS,
        **kernels_environment("student"),
        **allocator_environment(keep=keep_memory),
    }
