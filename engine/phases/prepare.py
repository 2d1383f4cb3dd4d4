"""Phase 0 of a run: the checks and the tokens; no model in memory."""

from __future__ import annotations

from dataclasses import asdict

from engine.config import RunConfig
from engine.data.prepare import prepare
from engine.data.sources import open_source
from engine.events import EventWriter
from engine.models.spec import ModelSpec, read_spec
from engine.phase_control import PhaseControl
from engine.planner.models import FROM_TEACHER
from engine.run import Run


def teacher_spec(settings: RunConfig) -> ModelSpec:
    """The teacher, described."""
    return read_spec(str(settings.teacher), trust_remote_code=settings.trust_remote_code)


def student_spec(settings: RunConfig) -> ModelSpec | None:
    """The student, described; None when it is cut from the teacher."""
    if settings.student == FROM_TEACHER:
        return None
    return read_spec(str(settings.student), trust_remote_code=settings.trust_remote_code)


def _check_fit(model: ModelSpec, settings: RunConfig) -> None:
    """Refuse files that cannot become a model now, not when hours of scoring are behind us."""
    if settings.trust_remote_code and model.config.get("auto_map"):
        return  # only the model's own code can tell
    from engine.models.fit import check_fit  # transformers takes seconds to import, and what comes before is quick

    check_fit(model.path)


def run_prepare(run: Run, events: EventWriter, control: PhaseControl) -> None:
    """Make ``tokens.h5``."""
    settings = run.settings
    assert settings.data is not None
    assert settings.sequence_length is not None
    teacher, student = teacher_spec(settings), student_spec(settings)
    for model in (teacher, student):
        if model is not None:
            _check_fit(model, settings)
    result = prepare(
        source=open_source(settings.data, text_field=settings.text_field, split=settings.data_split),
        teacher=teacher,
        student=student,
        sequence_length=settings.sequence_length,
        samples=settings.samples,
        holdout=settings.holdout,
        packing=settings.packing,
        out=run.tokens_path,
        events=events,
        control=control,
        trust_remote_code=settings.trust_remote_code,
    )
    run.finish_phase("prepare", {"data": {"source": settings.data, **asdict(result)}})
