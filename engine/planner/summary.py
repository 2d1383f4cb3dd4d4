"""A plan in three sentences, without the names of settings."""

from __future__ import annotations

from pathlib import Path

from engine.format import format_bytes, format_count, format_duration
from engine.planner.demo import caution
from engine.planner.models import FROM_TEACHER
from engine.planner.prediction import Plan


def summary(planned: Plan) -> tuple[str, ...]:
    """Describe the teacher's work, the student's work, and the run's disk usage."""
    if planned.settings.until == "prepare":
        sentences = ["The text is read and divided into rows; no model is run."]
    else:
        sentences = [_teacher(planned)]
    if "student" in planned.predicted:
        sentences.append(_student(planned))
    else:
        sentences.append("The run ends there, and can be resumed later.")
    sentences.append(f"The run's folder takes up to {format_bytes(planned.disk_bytes)} on the disk.")
    return tuple(sentences)


def cautions(planned: Plan) -> tuple[str, ...]:
    """Return warnings to consider before the run starts; empty if there are none."""
    return tuple(filter(None, (caution(planned.settings.teacher, planned.settings.data), planned.little_text)))


def _teacher(planned: Plan) -> str:
    settings = planned.settings
    rows, takes_all = _rows(planned)
    if _has_records(settings.cache_dir):
        every = rows if takes_all else f"all {rows}"
        time = _time(planned, "teacher", ": {}")
        return f"The teacher reads only rows that the cache has no records of ({every}{time})."
    return (
        f"The teacher reads {rows}, {format_count(settings.sequence_length or 0)} tokens each, once"
        f"{_time(planned, 'teacher')}."
    )


def _rows(planned: Plan) -> tuple[str, bool]:
    """Return the rows to train on in words, and whether they are all that the text gives."""
    asked, there_are = planned.settings.samples, planned.text_rows
    if asked is not None and (there_are is None or asked <= there_are):
        return f"{format_count(asked)} rows", False
    return "all rows of the text" + (f" (about {format_count(there_are)})" if there_are is not None else ""), True


def _student(planned: Plan) -> str:
    settings = planned.settings
    layers = settings.student_layers
    if settings.student != FROM_TEACHER:
        who = "the student"
    elif layers is None:
        who = "a student with some of the teacher's layers"
    else:
        kept = layers if isinstance(layers, int) else len(str(layers).split(","))
        who = f"a student with {kept} of the teacher's layers"
    count = planned.total_steps
    steps = "a number of steps" if count is None else "one step" if count == 1 else f"{format_count(count)} steps"
    often = f", reading each row {_times(settings.epochs)}" if settings.steps is None and settings.epochs else ""
    return f"Then {who} learns from the teacher's answers in {steps}{often}{_time(planned, 'student')}."


def _times(epochs: int) -> str:
    return {1: "once", 2: "twice"}.get(int(epochs), f"{epochs:,} times")


def _has_records(cache: Path | None) -> bool:
    """Return whether a folder is a cache, or holds some: another run's, or one that runs share."""
    try:
        return cache is not None and any(any(cache.glob(f"{place}manifest.json")) for place in ("", "*/"))
    except OSError:
        return False


def _time(planned: Plan, phase: str, form: str = " ({})") -> str:
    figures = planned.predicted.get(phase)
    if figures is None or planned.total_steps is None:
        return ""
    return form.format(f"about {format_duration(figures.seconds)}")
