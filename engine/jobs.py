"""Jobs: the work of one process each, described completely.

The planner makes the list of a run's jobs, ``run.json`` keeps it, the supervisor walks through it, and the process of a
phase reads its own job. Nothing that the planner decides is open in a job: ``None`` stands only where a user may leave
something out, as the folder of shared records. A value of a job has the name of the setting that it comes from.

A job that ran out of memory is replaced by a smaller one (:func:`backed_off`). This file knows nothing of processes,
folders or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from engine.machine.device import Device
from engine.settings.config import SETTINGS, RunConfig
from engine.settings.describe import layer_count

AJob = TypeVar("AJob", bound="Job")

Change = tuple[str, Any, Any]
"""A value of a job: its name, what it was and what it becomes."""


class Job(BaseModel):
    """The values that every job has.

    Attributes:
        kind: of :data:`engine.phase_kinds.KINDS`.
        name: of the job in its run: in events, and of its result's file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    kind: str
    name: str
    teacher: str
    student: str
    trust_remote_code: bool
    seed: int
    sequence_length: int
    device: str
    threads: int
    processes: int
    memory_budget: int
    ram_budget: int
    keep_memory: bool

    @property
    def where(self) -> Device:
        """Its device."""
        return Device.of(self.device)

    @property
    def memory_of_each(self) -> int:
        """The part of the memory budget that each of its processes may take."""
        return self.memory_budget // self.processes

    @property
    def ram_of_each(self) -> int:
        """The part of the budget of main memory that each of its processes may take."""
        return self.ram_budget // self.processes

    def changed(self, values: Mapping[str, Any]) -> Self:
        """The same job with other values; those that it does not have are left out."""
        own = {name: value for name, value in values.items() if name in type(self).model_fields}
        return type(self).model_validate({**self.model_dump(), **own}) if own else self


class CutJob(Job):
    """A job that knows which part of its teacher a student is that is cut from it."""

    student_layers: int | str | None
    student_width: float

    @property
    def num_kept(self) -> int:
        """Layers of the student that is cut; 0 for another one."""
        return layer_count(self.student_layers) or 0

    @model_validator(mode="after")
    def _has_layers(self) -> Self:
        if self.student == "from-teacher" and self.student_layers is None:
            raise ValueError("a student that is cut has a number of layers")
        return self


class PrepareJob(CutJob):
    """Check the models, read the text, and make rows of tokens."""

    kind: Literal["prepare"] = "prepare"
    data: str
    data_split: str
    text_field: str | None
    samples: int | None
    holdout: float
    packing: bool
    allow_losses: bool
    lora_rank: int
    lora_targets: str | None


class RecordsJob(Job):
    """A job on the teacher's records: the values that identify the records."""

    temperature: float
    record_size: int
    precision: Literal["fp32", "bf16", "fp16"]
    quantization: Literal["none", "int8", "nf4"]
    cache_dir: Path | None


class ScoreJob(RecordsJob, CutJob):
    """Score the rows with the teacher, and cut the student from it.

    Attributes:
        vocab_size: rows of the teacher's lm_head.
        head_chunk_tokens: positions whose logits exist at a time.
    """

    kind: Literal["teacher"] = "teacher"
    teacher_batch: int
    layer_by_layer: bool
    cpu_offload: bool
    vocab_size: int
    head_chunk_tokens: int


class TrainJob(RecordsJob):
    """Train the student on the records, measure it, and write it.

    Attributes:
        epochs, steps: one of them is set.
        lora_rank: 0 trains all weights.
        lora_alpha: set where there is an adapter.
    """

    kind: Literal["student"] = "student"
    packing: bool
    epochs: int | None
    steps: int | None
    learning_rate: float
    warmup: float
    schedule: Literal["cosine", "linear", "constant"]
    weight_decay: float
    clip_norm: float
    target: Literal["unbiased", "topk", "ghost", "blend"]
    kd_weight: float
    compare: Literal["none", "labels"]
    optimizer: Literal["adamw", "adamw-8bit"]
    student_batch: int
    gradient_accumulation: int
    gradient_checkpointing: bool
    cpu_offload: bool
    student_quantization: Literal["none", "int8", "nf4"]
    student_layer_by_layer: bool
    student_sharded: bool
    lora_rank: int
    lora_alpha: float | None
    lora_targets: str | None
    checkpoint_every: int
    evaluations: int
    keep_checkpoints: int

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("epochs or steps say when a training ends, and one of them alone")
        return self


_CLASSES: tuple[type[Job], ...] = (PrepareJob, ScoreJob, TrainJob)
_LIST: TypeAdapter[tuple[PrepareJob | ScoreJob | TrainJob, ...]] = TypeAdapter(
    tuple[Annotated[PrepareJob | ScoreJob | TrainJob, Field(discriminator="kind")], ...]
)


def jobs_of(settings: RunConfig, *, vocab_size: int, head_chunk_tokens: int) -> tuple[Job, ...]:
    """The jobs of a run, in order.

    Args:
        settings: the run's, complete.
        vocab_size: see :class:`ScoreJob`.
        head_chunk_tokens: see :class:`ScoreJob`.

    Raises:
        ValueError: a setting is open that a job needs.
    """
    values = settings.model_dump(mode="json")
    values |= {"vocab_size": vocab_size, "head_chunk_tokens": head_chunk_tokens}
    made = []
    for of_kind in _CLASSES:
        kind = of_kind.model_fields["kind"].default
        own = {name: values[name] for name in of_kind.model_fields if name not in ("kind", "name")}
        made.append(of_kind.model_validate({**own, "name": kind}))
    return tuple(made)


def jobs_to_json(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """The jobs as ``run.json`` has them."""
    return [job.model_dump(mode="json") for job in jobs]


def jobs_from_json(found: object) -> tuple[Job, ...]:
    """The jobs out of ``run.json``.

    Raises:
        ValueError: these are no jobs, or they are of another version.
    """
    jobs = _LIST.validate_python(found)
    if not jobs:
        raise ValueError("a run has jobs")
    return jobs


def last_of(jobs: Sequence[Job], of_kind: type[AJob]) -> AJob:
    """The last job of a kind.

    Raises:
        ValueError: there is none.
    """
    for job in reversed(jobs):
        if isinstance(job, of_kind):
            return job
    raise ValueError(f"there is no {of_kind.__name__}")


def with_values(jobs: Iterable[Job], values: Mapping[str, Any]) -> tuple[Job, ...]:
    """The same jobs with other values of settings, each where it has them."""
    return tuple(job.changed(values) for job in jobs)


def backed_off(jobs: Sequence[Job], name: str, changes: Iterable[Change]) -> tuple[Job, ...]:
    """The list with a smaller job in the place of one that ran out of memory.

    Jobs after it change alike where they have the same value: they would run out of the same memory. Those before it
    stay as they were.

    Args:
        jobs: the run's.
        name: of the job.
        changes: as :func:`engine.run.backoff.next_step` has them.
    """
    places = [job.name for job in jobs]
    first = places.index(name)
    made = list(jobs)
    for place in range(first, len(made)):
        job = made[place]
        made[place] = job.changed({field: new for field, old, new in changes if getattr(job, field, None) == old})
    return tuple(made)


def settings_in(changes: Iterable[Change]) -> dict[str, Any]:
    """The changes that are settings, by name; some of a job's values are none."""
    return {name: new for name, _, new in changes if name in SETTINGS}
