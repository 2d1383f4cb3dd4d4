"""Phase 0 of a run: the checks and the tokens; no model in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from engine.channel.channel import Channel
from engine.data.passes import PrepareSettings
from engine.data.prepare import prepare
from engine.data.sources import open_source
from engine.errors import ModelError, Problem, SettingsError, TokenizerMismatch
from engine.jobs import Job, PrepareJob
from engine.model_files.narrow import width_of
from engine.model_files.spec import ModelSpec, read_spec
from engine.planner.adapters import adapter_problems, targets_of
from engine.planner.defaults import too_little_text
from engine.planner.models import FROM_TEACHER
from engine.planner.shape import shape_of
from engine.run.folder import Run
from engine.run.inputs import INPUTS, identity_of, identity_of_model
from engine.settings.describe import layer_list

STAGE = "stage"
"""Code of the event that says what a phase does while it cannot tell how much of it is done."""


def teacher_spec(job: Job) -> ModelSpec:
    """The teacher, described."""
    return _described("teacher", job.teacher, job)


def student_spec(job: Job) -> ModelSpec | None:
    """The student, described; None when it is cut from the teacher."""
    return None if job.student == FROM_TEACHER else _described("student", job.student, job)


def _described(name: str, model: str, job: Job) -> ModelSpec:
    try:
        return read_spec(model, trust_remote_code=job.trust_remote_code)
    except ModelError as error:
        if os.path.lexists(Path(model).expanduser()):
            raise
        todo = f"If the {name} was moved, add its new place: --{name} FOLDER."
        raise ModelError(error.what, error.why, todo) from error


def _check_fit(model: ModelSpec, channel: Channel, *, numbers: bool) -> None:
    """Refuse invalid model files now, not after hours of scoring.

    Args:
        model: the teacher or the student.
        channel: may stop the look.
        numbers: look for NaN and infinity in the weights as well. Those of a teacher, which may be far larger, are
            looked at in its phase, when they are first read.
    """
    if model.runs_own_code:
        return  # only the model's own code knows
    from engine.models.fit import check_fit  # transformers takes seconds to import, and what comes before is quick

    weights = check_fit(model.path)
    if numbers:
        from engine.models.finite import check_files

        check_files(model.path, weights, safe_point=channel.safe_point)


def check_named_layers(teacher: ModelSpec, job: PrepareJob) -> None:
    """Refuse layers that the user named and that cannot form a model, before the teacher scores the text."""
    named = layer_list(job.student_layers)
    if job.student != FROM_TEACHER or named is None:
        return
    from engine.models.derive import is_valid_cut, layers_to_keep

    if is_valid_cut(teacher, named):
        return
    total = teacher.num_layers
    even = layers_to_keep(total, len(named))
    if is_valid_cut(teacher, even):
        listed = ",".join(map(str, even))
        todo = f"Try {listed}, or give the number of layers alone: the run then chooses them by measurement."
    else:
        todo = f"All {total} layers fit. Or give a number of layers alone: the run then looks for layers that fit."
    raise SettingsError(
        [
            Problem(
                "student_layers",
                job.student_layers,
                f"these layers do not fit together: in {teacher.name}, the kind of a layer depends on its number, or "
                f"layers share weights",
            )
        ],
        todo,
    )


def check_linears(source: ModelSpec, job: PrepareJob) -> None:
    """Refuse an adapter that the student's linear layers do not allow, as the model itself has them.

    The plan has looked at the names in the student's files, which transformers may change. Of a teacher that the
    student is cut from, the last layers will not be there.
    """
    if not job.lora_rank:
        return
    import torch

    from engine.models.checkpoint import Checkpoint
    from engine.models.linears import chosen, decoder_linears
    from engine.models.load import quiet
    from engine.models.meta import build_on_meta, read_config
    from engine.student.adapter_file import merged_into

    trusted = source.trust_remote_code
    with quiet():
        config = read_config(source.path, trust_remote_code=trusted)
        model = build_on_meta(config, dtype=torch.float32, trust_remote_code=trusted)
    is_cut = job.student == FROM_TEACHER
    kept = job.num_kept if is_cut else source.num_layers
    linears = [linear for linear in decoder_linears(model) if linear.layer < kept]

    def adapted(targets: Sequence[str]) -> list[tuple[str, int, int]]:
        return [(linear.name, linear.rows, linear.columns) for linear in chosen(linears, targets)]

    if problems := adapter_problems(job.lora_rank, job.lora_targets, source.name, adapted):
        raise SettingsError(problems)
    checkpoint = Checkpoint(source.path)
    try:
        merged_into(chosen(linears, targets_of(job.lora_targets)), model, checkpoint)
    finally:
        checkpoint.close()


def check_end(source: ModelSpec, teacher: ModelSpec, student_path: Path, channel: Channel) -> None:
    """Test the export of the student early: its files, and its tokenizer against the teacher's.

    Args:
        source: the model that the student begins as, or is cut from.
        teacher: whose tokenizer cuts the text.
        student_path: where the student will be written.
        channel: receives notes about parts that the student's files will lack.

    Raises:
        ModelError, FolderError: the student could not be written, or not be read again.
        TokenizerMismatch: its tokenizer cuts text otherwise than the teacher's does.
    """
    from engine.models.faithful import probe_ids
    from engine.models.load import load_tokenizer
    from engine.student.export import rehearse_export

    for note in rehearse_export(source, student_path):
        channel.log("warning", note, "student-files")
    if _same_tokenizer_files(source.path, teacher.path):
        return
    models = (source, teacher)
    ours, theirs = (load_tokenizer(model.path, trust_remote_code=model.trust_remote_code) for model in models)
    if probe_ids(ours) != probe_ids(theirs):
        raise TokenizerMismatch(
            f"The tokenizers in {teacher.path} and {source.path} have the same ids and cut text in different ways.",
            "The student would learn from tokens that its own tokenizer does not make of the same text.",
            "Choose a student with the teacher's tokenizer, or --student from-teacher.",
        )


def _same_tokenizer_files(one: Path, other: Path) -> bool:
    def content(file: Path) -> bytes:
        return file.read_bytes() if file.is_file() else b""

    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    return all(content(one / name) == content(other / name) for name in names) and (one / "tokenizer.json").is_file()


def run_prepare(run: Run, job: PrepareJob, channel: Channel) -> None:
    """Make ``tokens.h5``."""
    teacher, student = teacher_spec(job), student_spec(job)
    channel.log("info", "Checking the models' files.", STAGE)
    _check_fit(teacher, channel, numbers=False)
    if student is not None:
        _check_fit(student, channel, numbers=True)
    check_named_layers(teacher, job)
    check_linears(student or teacher, job)
    check_end(student or teacher, teacher, run.student_path, channel)
    channel.log("info", "Loading the tokenizer and reading the text.", STAGE)
    result = prepare(
        source=open_source(job.data, text_field=job.text_field, split=job.data_split),
        teacher=teacher,
        student=student,
        out=run.tokens_path,
        channel=channel,
        settings=PrepareSettings(
            sequence_length=job.sequence_length,
            samples=job.samples,
            holdout=job.holdout,
            packing=job.packing,
            trust_remote_code=job.trust_remote_code,
            allow_losses=job.allow_losses,
        ),
    )
    shape = shape_of(student or teacher)
    if student is None:
        if job.student_width < 1:
            width = width_of(teacher, job.student_width)
            shape = shape.with_width(width.neurons, width.heads, width.kv_heads)
        shape = shape.with_layers(job.num_kept, layer_list(job.student_layers))
    trained = shape.trained_parameters(job.lora_rank, targets_of(job.lora_targets))
    little = too_little_text(result.train_scored, trained)
    if little is not None:
        channel.log("warning", little, "little-text")
    named = {name: str(getattr(job, name)) for name in INPUTS}
    inputs = {name: identity_of(name, value, trust_remote_code=job.trust_remote_code) for name, value in named.items()}
    inputs["teacher"] = inputs["teacher"] or identity_of_model(teacher)
    if student is not None:
        inputs["student"] = inputs["student"] or identity_of_model(student)
    run.finish_phase("prepare", {"data": {"source": job.data, **asdict(result)}, "inputs": inputs})
