"""Choice of teacher and student: the named models, or models that the planner picks.

Reads config.json, safetensors headers and tokenizers; downloads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.data.checks import check_models
from engine.errors import ModelError, Problem, SettingsError, TinyDistillError
from engine.format import format_bytes, format_count
from engine.model_files.demo import DEMO_TEACHER
from engine.model_files.hub import cached_models
from engine.model_files.narrow import width_of
from engine.model_files.spec import ModelSpec, read_spec
from engine.planner.budget import Budget
from engine.planner.footprint import student_footprint, teacher_footprint
from engine.planner.phase_settings import StudentSetting, TeacherSetting
from engine.planner.shape import ModelShape, shape_of
from engine.settings.config import RunConfig
from engine.settings.describe import layer_count, layer_list

FROM_TEACHER = "from-teacher"


@dataclass(frozen=True)
class Models:
    """Teacher and student.

    Attributes:
        teacher: as in the settings: a folder or an id.
        student: the same, or ``from-teacher``.
        student_shape: of the student; of the teacher when the student is cut from it.
        reasons: for "teacher" and "student" where the planner picked.
        notes: token ids that are not trained, if the tokenizers differ in added tokens only.
    """

    teacher: str
    student: str
    teacher_shape: ModelShape
    student_shape: ModelShape
    reasons: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def cut(self) -> bool:
        """Whether the student is cut from the teacher."""
        return self.student == FROM_TEACHER

    def shape_after_cut(self, config: RunConfig) -> ModelShape:
        """Of the student with as many layers as the settings keep; with all of them while their number is open."""
        count = layer_count(config.student_layers) if self.cut else None
        if count is None:
            return self.student_shape
        return self.student_shape.with_layers(count, layer_list(config.student_layers))


def models_for(config: RunConfig, budget: Budget) -> Models:
    """Describe the models of a run; pick those that are not named.

    Raises:
        SettingsError: the student would have more layers than the teacher, or no model is named and none may be picked.
        ModelError: a model is not there, or cannot be used.
    """
    reasons: dict[str, str] = {}
    teacher = config.teacher
    if config.demo and teacher is None:
        teacher, reasons["teacher"] = str(DEMO_TEACHER), "the small teacher that comes with the program"
    elif teacher is None and config.use_recommended:
        teacher, reasons["teacher"] = _pick_teacher(config, budget)
    student = config.student
    if student is None and (config.demo or config.use_recommended):
        student = FROM_TEACHER
        reasons["student"] = "cut from the teacher's layers: the same vocabulary, and a head start on random weights"
    missing = [
        Problem(name, "", "is needed: a folder, a GGUF file, or a Hugging Face id")
        for name, value in (("teacher", teacher), ("student", student))
        if value is None
    ]
    if missing or teacher is None or student is None:
        raise SettingsError(missing, "Or let the planner choose: --use_recommended; or try the demo: --demo.")
    spec = read_spec(teacher, trust_remote_code=config.trust_remote_code)
    other = None if student == FROM_TEACHER else read_spec(student, trust_remote_code=config.trust_remote_code)
    teacher_shape = shape_of(spec)
    student_shape = teacher_shape if other is None else shape_of(other)
    if config.student_layers is not None and student == FROM_TEACHER:
        most, named = teacher_shape.num_layers, layer_list(config.student_layers)
        accepted = f"the teacher has {most} layers to take from" + (f", 0 to {most - 1}" if named else "")
        if (layer_count(config.student_layers) or 0) > most or (named and named[-1] >= most):
            raise SettingsError([Problem("student_layers", config.student_layers, accepted)])
    if config.student_width < 1 and student == FROM_TEACHER:
        width = width_of(spec, config.student_width)
        student_shape = student_shape.with_width(width.neurons, width.heads, width.kv_heads)
    return Models(teacher, student, teacher_shape, student_shape, reasons, _vocabulary_notes(spec, other))


def describe(path_or_id: str, trust_remote_code: bool = False) -> ModelShape:
    """A model's sizes.

    Raises:
        ModelError: as :func:`engine.model_files.spec.read_spec`.
    """
    return shape_of(read_spec(path_or_id, trust_remote_code=trust_remote_code))


def _vocabulary_notes(teacher: ModelSpec, student: ModelSpec | None) -> tuple[str, ...]:
    """Return the notes of :func:`engine.data.checks.check_models`; the request check reports refusals."""
    try:
        return check_models(teacher, student, 1).notes
    except TinyDistillError:
        return ()


def _pick_teacher(config: RunConfig, budget: Budget) -> tuple[str, str]:
    """Return the largest cached model from which a student can be cut within the budget, else the demo's."""
    fitting = []
    for name in cached_models():
        try:
            shape = describe(name, config.trust_remote_code)
        except ModelError:  # an encoder, a quantised model, an incomplete download: none can be a teacher
            continue
        if _smallest_fits(shape, budget):
            fitting.append((shape.parameters, name))
    if fitting:
        parameters, name = max(fitting)
        which = "the only model" if len(fitting) == 1 else f"the largest of {len(fitting)} models"
        room = format_bytes(budget.memory_bytes)
        return name, f"{which} in the local cache that fits {room}: {format_count(parameters)} parameters"
    return str(DEMO_TEACHER), "there is no model in the local cache that fits; this one comes with the program"


def _smallest_fits(shape: ModelShape, budget: Budget) -> bool:
    teacher = TeacherSetting(1, 128, "fp32", layer_by_layer=True, device=budget.where)
    student = StudentSetting(1, 1, 128, "fp32", checkpointing=True, optimizer="adamw-8bit", device=budget.where)
    half = shape.with_layers(max(1, shape.num_layers // 2))
    return budget.fits(teacher_footprint(shape, teacher)) and budget.fits(student_footprint(half, student))
