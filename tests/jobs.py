"""Jobs and settings as the planner makes them, for tests that need no plan."""

from __future__ import annotations

from typing import Any

from engine.jobs import Job, PrepareJob, ScoreJob, TrainJob, jobs_of
from engine.machine.device import Device
from engine.planner.sizes import head_chunk_tokens
from engine.settings.config import RunConfig

SETTINGS: dict[str, Any] = {
    "teacher": "t",
    "student": "s",
    "data": "d",
    "sequence_length": 64,
    "epochs": 1,
    "learning_rate": 1e-4,
    "lora_rank": 0,
    "teacher_batch": 1,
    "student_batch": 1,
    "gradient_accumulation": 1,
    "gradient_checkpointing": False,
    "layer_by_layer": False,
    "cpu_offload": False,
    "student_layer_by_layer": False,
    "student_sharded": False,
    "precision": "fp32",
    "optimizer": "adamw",
    "memory_budget": 2**40,
    "ram_budget": 2**40,
    "keep_memory": False,
    "device": "cpu",
    "threads": 1,
    "checkpoint_every": 10,
    "evaluations": 2,
}


def complete(**values: object) -> RunConfig:
    """Settings without an open value."""
    ends = {"epochs": None} if "steps" in values else {}
    return RunConfig.model_validate({**SETTINGS, **ends, **values})


def jobs(settings: RunConfig, vocab_size: int = 1000) -> tuple[Job, ...]:
    """The jobs of a run with these settings."""
    chunk = head_chunk_tokens(vocab_size, device=Device.of(str(settings.device)))
    return jobs_of(settings, vocab_size=vocab_size, head_chunk_tokens=chunk)


def prepare_job(**values: object) -> PrepareJob:
    """A job that prepares."""
    found = jobs(complete(**values))[0]
    assert isinstance(found, PrepareJob)
    return found


def score_job(vocab_size: int = 1000, **values: object) -> ScoreJob:
    """A job that scores."""
    found = jobs(complete(**values), vocab_size)[1]
    assert isinstance(found, ScoreJob)
    return found


def train_job(**values: object) -> TrainJob:
    """A job that trains."""
    found = jobs(complete(**values))[2]
    assert isinstance(found, TrainJob)
    return found
