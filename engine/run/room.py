"""Whether a job has room in the memory that is free now, which may be less than when the run was planned.

Back-off asks before it starts a smaller job. Otherwise a phase would start again and again with settings that cannot
fit beside other programs.
"""

from __future__ import annotations

from engine.errors import TinyDistillError
from engine.jobs import Job, ScoreJob, TrainJob
from engine.machine import hardware
from engine.machine.gpu_check import gpu_of
from engine.planner.budget import Budget
from engine.planner.footprint import context_bytes_on, student_footprint, teacher_footprint
from engine.planner.models import FROM_TEACHER, describe
from engine.planner.phase_settings import Footprint, StudentSetting, TeacherSetting
from engine.run.folder import Run

# A prediction is up to a tenth too high, and a job is only passed over if it surely does not fit.
_SURELY = 0.9


def has_room(run: Run, job: Job) -> bool:
    """Return False if a job needs more memory than is free now, by a safe margin.

    The answer is True where no prediction can be made: streamed layers come in waves as large as memory allows, several
    processes share a machine, and a user may have moved a model.

    Args:
        run: of the job.
        job: while none of its processes is running.
    """
    footprint = None if job.processes > 1 else _footprint(run, job)
    if footprint is None:
        return True
    gpu = gpu_of(job.device)
    if gpu is None and not job.where.is_host:  # the driver does not answer
        return True
    ram = min(job.ram_budget, hardware.available_bytes())
    on_device = ram if gpu is None else gpu.free_bytes
    room = Budget(job.device, min(job.memory_budget, on_device), ram, {}, 0 if gpu is None else context_bytes_on(gpu))
    return room.fits(_at_least(footprint))


def _footprint(run: Run, job: Job) -> Footprint | None:
    try:
        if isinstance(job, ScoreJob):
            if job.layer_by_layer:
                return None
            return teacher_footprint(describe(job.teacher, job.trust_remote_code), TeacherSetting.of(job))
        if isinstance(job, TrainJob):
            folder = str(run.initial_student_path) if job.student == FROM_TEACHER else job.student
            setting = StudentSetting.of(job)
            if setting.layer_by_layer:
                return None
            return student_footprint(describe(folder, job.trust_remote_code), setting)
    except (TinyDistillError, OSError):
        return None
    return None


def _at_least(footprint: Footprint) -> Footprint:
    """The least that a phase of this footprint takes; pages of files are left out, for the kernel takes them back."""
    parts = {name: int(_SURELY * size) for name, size in footprint.parts.items()}
    return Footprint(parts, int(_SURELY * footprint.ram_bytes))
