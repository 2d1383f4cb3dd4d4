"""The settings of a phase that its memory and time depend on, without an open value, and the memory that they lead to.

The planner searches over them; a phase and back-off make the same value from a job.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.jobs import ScoreJob, TrainJob
from engine.machine.device import CPU, Device
from engine.planner.adapters import targets_of
from engine.planner.shape import ModelShape


@dataclass(frozen=True)
class TeacherSetting:
    """The settings that the teacher phase's memory and time depend on.

    Attributes:
        total_tokens: of the whole text; short text makes short waves. None while it is not known.
        reads_ahead: a streamed layer is read while the one before computes, and the head's rows are kept; see
            :func:`reads_ahead`.
        keeps_memory: freed memory stays in the process.
    """

    batch: int
    sequence_length: int
    precision: str
    layer_by_layer: bool
    quantization: str = "none"
    cpu_offload: bool = False
    record_size: int = 12
    device: Device = CPU
    total_tokens: int | None = None
    reads_ahead: bool = True
    keeps_memory: bool = False

    @classmethod
    def of(cls, job: ScoreJob) -> TeacherSetting:
        """The setting of a job; freed memory is taken to go back to the system."""
        return cls(
            batch=job.teacher_batch,
            sequence_length=job.sequence_length,
            precision=job.precision,
            layer_by_layer=job.layer_by_layer,
            quantization=job.quantization,
            cpu_offload=job.cpu_offload,
            record_size=job.record_size,
            device=job.where,
        )


@dataclass(frozen=True)
class StudentSetting:
    """The settings that the student phase's memory and time depend on.

    Attributes:
        packing: rows hold several documents, between which attention is cut by a mask.
        rank: of a low-rank adapter; 0 trains all weights.
        targets: linear layers that are adapted; all where empty.
        quantization: of the frozen weights of a student with an adapter.
        layer_by_layer: a student with an adapter has its layers streamed.
        reads_ahead: a streamed layer is read while the one before computes; see :func:`student_reads_ahead`.
        ranks: processes that share the rows of a step; ``batch`` and ``accumulation`` are those of one alone.
        sharded: whether the ranks divide weights, gradients and states among them too.
    """

    batch: int
    accumulation: int
    sequence_length: int
    precision: str
    checkpointing: bool
    optimizer: str
    cpu_offload: bool = False
    record_size: int = 12
    device: Device = CPU
    keeps_memory: bool = False
    packing: bool = False
    rank: int = 0
    targets: tuple[str, ...] = ()
    quantization: str = "none"
    layer_by_layer: bool = False
    reads_ahead: bool = True
    ranks: int = 1
    sharded: bool = False

    @classmethod
    def of(cls, job: TrainJob) -> StudentSetting:
        """The setting of a job; freed memory is taken to go back to the system."""
        return cls(
            batch=job.student_batch,
            accumulation=job.gradient_accumulation,
            sequence_length=job.sequence_length,
            precision=job.precision,
            checkpointing=job.gradient_checkpointing,
            optimizer=job.optimizer,
            cpu_offload=job.cpu_offload,
            device=job.where,
            packing=job.packing,
            rank=job.lora_rank,
            targets=targets_of(job.lora_targets),
            quantization=job.student_quantization,
            layer_by_layer=job.student_layer_by_layer,
            ranks=job.processes,
            sharded=job.student_sharded and job.processes > 1,
        )

    @property
    def trains_all(self) -> bool:
        """Whether every weight of the student has a gradient, and not an adapter alone."""
        return not self.rank

    def trained_parameters(self, shape: ModelShape) -> int:
        """Parameters with gradients and moments: those of the student, or of its adapter."""
        return shape.trained_parameters(self.rank, self.targets)

    @property
    def is_lean(self) -> bool:
        """Return whether each gradient is applied as soon as it is computed (engine.student.lean_step)."""
        alone = self.accumulation == 1 and self.ranks == 1 and self.trains_all
        return self.optimizer == "adamw-8bit" and alone and self.precision != "fp16"

    @property
    def of_rank(self) -> StudentSetting:
        """The same for one of the ranks: it takes its share of the rows of a step, in micro-batches as large."""
        rows = -(-self.batch * self.accumulation // self.ranks)
        batch = min(self.batch, rows)
        return replace(self, batch=batch, accumulation=-(-rows // batch))


@dataclass(frozen=True)
class Footprint:
    """Peak memory of a phase.

    Attributes:
        parts: bytes of each part on the compute device at the moment of the peak.
        ram_bytes: peak main memory of the process; on the CPU the sum of the parts.
        mapped_bytes: file pages that every pass reads. They are no anonymous memory, the kernel takes them back when
            memory is short; but a phase whose pages do not stay would read the disk at every pass.
    """

    parts: dict[str, int]
    ram_bytes: int
    mapped_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """Peak on the compute device."""
        return sum(self.parts.values())

    @property
    def needed_bytes(self) -> int:
        """Main memory that has to be there for the phase to run well."""
        return self.ram_bytes + self.mapped_bytes
