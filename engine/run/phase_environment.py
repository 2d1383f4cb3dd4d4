"""The environment of a job's process: threads, the GPU that it sees, and how its libraries keep memory."""

from __future__ import annotations

import os

from engine import ranks
from engine.jobs import Job
from engine.machine import safe_child
from engine.machine.compute import compute_environment
from engine.machine.gpu_check import gpu_of, visible
from engine.ranks import ALONE, Rank


def environment_for(
    job: Job, rank: Rank = ALONE, meeting: str | None = None, *, local_world: int | None = None
) -> dict[str, str]:
    """The environment of a job's process; benchmarks ask here too, so that they measure what runs do.

    Args:
        job: the job.
        rank: of the process; the ranks on this machine share the threads.
        meeting: where the ranks of a training meet.
        local_world: processes of the job on this machine; all of them where not given, 1 for a share.
    """
    if local_world is None:
        local_world = job.processes if rank.world == job.processes else 1
    threads = ranks.threads_each(job.threads, local_world)
    return {
        **ranks.environment_of(rank, safe_child.environment(), local_world=local_world, meeting=meeting),
        **_gpu_environment(job.device),
        **compute_environment(threads, keep_memory=job.keep_memory),
        "TOKENIZERS_PARALLELISM": "false",  # forking after threads deadlocks; we give it one thread
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "PYTHONFAULTHANDLER": "1",
    }


_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # its name since torch 2.9, and before


def _gpu_environment(device: str) -> dict[str, str]:
    """Which GPUs a phase sees: the one of the plan, by its own name, so that no order of GPUs can mean another one."""
    if device == "cpu":
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    gpu = gpu_of(device)
    found = visible("" if gpu is None else gpu.uuid)
    if not any(name in os.environ for name in _ALLOCATOR):
        # Chunks and rows differ in length; segments that grow leave no holes that the next one does not fit into.
        found |= dict.fromkeys(_ALLOCATOR, "expandable_segments:True")
    return found
