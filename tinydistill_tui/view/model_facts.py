"""Texts about the two models before they are loaded. Pure, no Textual.

Reads config.json, safetensors headers and tokenizer files, through the engine; takes milliseconds to a second.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.data.checks import check_models
from engine.data.sources import PYTHON_DOCS
from engine.errors import DataError, SettingsError, TinyDistillError, TokenizerMismatch
from engine.format import format_bytes, format_count
from engine.machine.hardware import Hardware
from engine.model_files.demo import DEMO_TEACHER
from engine.model_files.spec import ModelSpec, read_spec
from engine.model_files.vocabulary import Vocabulary
from engine.planner import Plan, plan
from engine.planner.models import FROM_TEACHER
from engine.planner.summary import cautions
from engine.settings.config import RunConfig


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the two models.

    Attributes:
        teacher, student: lines below the two fields.
        checks: mark and sentence of each check.
        bad: the setting that is wrong; empty when none is.
        sentence: what is wrong with it, a whole paragraph.
    """

    teacher: tuple[str, ...] = ()
    student: tuple[str, ...] = ()
    checks: tuple[tuple[str, str], ...] = ()
    bad: str = ""
    sentence: str = ""


def look(config: RunConfig, machine: Hardware | None = None) -> ModelFacts:
    """Look at the models of a request; what is wrong is in the answer, nothing is raised.

    Args:
        config: the request.
        machine: what it is planned for; looked at now unless given.
    """
    try:
        return _look(config, machine)
    except DataError:  # the text is the next step's matter: a wrong one must not keep the user from that step
        return _look(config.model_copy(update={"data": PYTHON_DOCS, "text_field": None}), machine)


def _look(config: RunConfig, machine: Hardware | None) -> ModelFacts:
    where = "teacher"
    lines: dict[str, tuple[str, ...]] = {}
    try:
        if config.teacher is not None:
            read_spec(config.teacher, trust_remote_code=config.trust_remote_code)
        where = "student"
        if config.student not in (None, FROM_TEACHER):
            read_spec(str(config.student), trust_remote_code=config.trust_remote_code)
        where = "teacher"
        planned = plan(config, hardware=machine, strict=False)
        settings = planned.settings
        teacher = read_spec(str(settings.teacher), trust_remote_code=config.trust_remote_code)
        reasons = {choice.field: choice.reason for choice in planned.choices}
        lines["teacher"] = (*_described(teacher), _teacher_need(planned))
        if config.teacher is None:
            lines["teacher"] = (f"{_named(teacher)}: {reasons['teacher']}", *lines["teacher"])
        where = "student"
        student = None
        if settings.student != FROM_TEACHER:
            student = read_spec(str(settings.student), trust_remote_code=config.trust_remote_code)
        lines["student"] = (*(_described(student) if student else (reasons["student_layers"],)), _student_need(planned))
        vocabulary = check_models(teacher, student, settings.sequence_length or 2)
    except DataError:
        raise
    except TokenizerMismatch as error:
        return ModelFacts(lines.get("teacher", ()), (), (), "student", error.paragraph())
    except SettingsError as error:
        problem = error.problems[0]
        return ModelFacts(lines.get("teacher", ()), (), (), problem.setting, f"{problem.value}: {problem.accepted}.")
    except TinyDistillError as error:
        return ModelFacts(lines.get("teacher", ()), (), (), where, error.paragraph())
    checks = _checks(vocabulary, planned, is_cut=student is None)
    return ModelFacts(lines["teacher"], lines["student"], tuple(checks))


def _checks(vocabulary: Vocabulary, planned: Plan, *, is_cut: bool) -> list[tuple[str, str]]:
    """Mark and sentence of each check that two models have passed, or nearly."""
    settings = planned.settings
    same = "The tokenizer is the teacher's own" if is_cut else "Same tokenizer: ids, merges and added tokens agree"
    checks = [("good", f"{same} ({vocabulary.size:,} ids)")]
    if vocabulary.notes:
        checks = [("look", note) for note in vocabulary.notes]
    checks.append(("good", f"Long enough for rows of {settings.sequence_length:,} tokens"))
    checks += [("look", sentence) for sentence in cautions(planned)]
    if planned.misfit is not None:
        checks.append(("look", "It does not fit with these settings; the plan shows settings that fit."))
    else:
        checks.append(("good", f"Fits the budget of {format_bytes(settings.memory_budget)}"))
    return checks


def _named(spec: ModelSpec) -> str:
    return "The demo's teacher" if spec.path == DEMO_TEACHER else spec.name


def _described(spec: ModelSpec) -> tuple[str, ...]:
    limit = f"context {spec.max_positions:,}" if spec.max_positions else "any length"
    return (
        f"{format_count(spec.num_parameters)} parameters · {spec.num_layers} layers of {spec.hidden_size:,} · "
        f"{spec.dtype} · {format_bytes(spec.file_bytes)}",
        f"{spec.architecture} · vocabulary {spec.vocab_size:,} · {limit}",
    )


def _teacher_need(planned: Plan) -> str:
    if "teacher" not in planned.predicted:
        return "does not score in this run, which only prepares the text"
    how = "streamed layer by layer" if planned.settings.layer_by_layer else "whole in memory"
    return f"scores {how}, peak {format_bytes(planned.predicted['teacher'].peak_bytes)}"


def _student_need(planned: Plan) -> str:
    if "student" not in planned.predicted:
        return f"does not train in this run, which ends after {planned.settings.until}"
    return f"trains in {format_bytes(planned.predicted['student'].peak_bytes)}"
