"""Run folders of before: a ``run.json`` that has the run's settings and no jobs (format 1).

Its jobs are made from the settings. A setting that did not exist when the run was planned has the value here that the
run worked with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import TinyDistillError
from engine.jobs import Job, jobs_of
from engine.machine.device import Device
from engine.machine.hardware import usable_cores
from engine.model_files.spec import read_spec
from engine.planner.defaults import MOST_EVALUATIONS
from engine.planner.sizes import head_chunk_tokens
from engine.settings.config import RunConfig
from engine.settings.describe import MOST

FORMAT = 1

_WORKED_WITH: Mapping[str, Any] = {
    "teacher_batch": 1,
    "student_batch": 1,
    "gradient_accumulation": 1,
    "gradient_checkpointing": False,
    "layer_by_layer": False,
    "cpu_offload": False,
    "student_layer_by_layer": False,
    "student_sharded": False,
    "keep_memory": False,
    "lora_rank": 0,
    "precision": "fp32",
    "optimizer": "adamw",
    "device": "cpu",
    "learning_rate": 1e-4,
    "evaluations": MOST_EVALUATIONS,
    "memory_budget": MOST,
    "ram_budget": MOST,
    "checkpoint_every": MOST,
}
# Where the teacher cannot be read any more it will not score either, but the student continues from its records.
_LARGE_VOCABULARY = 2**18


def jobs_of_old_run(info: Mapping[str, Any]) -> tuple[Job, ...]:
    """The jobs of a run that was planned without them.

    Args:
        info: the content of its ``run.json``.

    Raises:
        ValueError: its settings are not complete.
    """
    settings = RunConfig.model_validate(info["settings"])
    missing = {name: value for name, value in _WORKED_WITH.items() if getattr(settings, name) is None}
    missing |= {"threads": usable_cores()} if settings.threads is None else {}
    missing |= {"epochs": 1} if settings.epochs is None and settings.steps is None else {}
    settings = settings.model_copy(update=missing)
    vocab_size = _vocab_size(settings)
    chunk = info.get("head_chunk_tokens") or head_chunk_tokens(vocab_size, device=Device.of(str(settings.device)))
    return jobs_of(settings, vocab_size=vocab_size, head_chunk_tokens=chunk)


def _vocab_size(settings: RunConfig) -> int:
    try:
        return read_spec(str(settings.teacher), trust_remote_code=settings.trust_remote_code).vocab_size
    except TinyDistillError:
        return _LARGE_VOCABULARY
