"""Relief of the student's phase while memory is short."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.jobs import TrainJob
from engine.machine.device import Device
from engine.model_files.spec import ModelSpec
from engine.models.memory import return_memory
from engine.planner.footprint import student_footprint
from engine.planner.phase_settings import StudentSetting
from engine.planner.shape import shape_of
from engine.student.learner import Learner


@dataclass(frozen=True)
class StudentSaver:
    """Memory relief of the student; on a GPU main memory is short, of which the student holds little."""

    learner: Learner
    saved_bytes: int
    growth_bytes: int = 0

    @classmethod
    def of(cls, job: TrainJob, learner: Learner, spec: ModelSpec) -> StudentSaver:
        """For this student: what it saves is the difference of two predictions."""
        shape = shape_of(spec)
        setting = StudentSetting.of(job)
        # The place of a whole student's weights makes no difference to what is saved.
        setting = replace(setting, cpu_offload=setting.cpu_offload and setting.layer_by_layer)
        if setting.layer_by_layer:  # one layer in memory instead of two
            without, with_it = (
                student_footprint(shape, replace(setting, reads_ahead=ahead)) for ahead in (True, False)
            )
        else:
            without, with_it = (
                student_footprint(shape, replace(setting, checkpointing=checkpointing))
                for checkpointing in (False, True)
            )
        return cls(learner, max(0, without.ram_bytes - with_it.ram_bytes))

    def save_memory(self, on: bool) -> str:
        """See :class:`engine.channel.pressure.Saver`."""
        return_memory()
        return self.learner.save_memory(on) if Device.of(str(self.learner.device)).is_host else ""
