"""Reasons for the chosen settings as sentences, with numbers where possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.format import format_bytes, format_count, format_duration
from engine.planner import disk
from engine.planner.adapters import ALPHA_PER_RANK, RATE_FACTOR
from engine.planner.defaults import default_length, effective_rows, whole_told
from engine.planner.footprint import student_footprint, teacher_footprint
from engine.planner.phase_settings import Footprint
from engine.planner.prediction import PhasePrediction, Plan
from engine.planner.recommend import Proposal, Question, keeping_memory
from engine.planner.sharding import why_not_sharded
from engine.planner.timing import step_seconds
from engine.planner.workload import Text
from engine.ranks import threads_each

NOT_CHOICES = frozenset(
    {"resume", "use_recommended", "profile", "start_from", "records_from", "demo", "dry_run", "json_events"}
)
"""Switches of one command; they do not affect the run."""

DEFAULTS: dict[str, str] = {
    "until": "teacher and student one after the other; teacher stops before the student trains, prepare before both",
    "student_width": "every layer that stays is kept whole",
    "trust_remote_code": "no code out of a model's folder is run",
    "text_field": "detected in the data",
    "data_split": "only for a Hugging Face data set",
    "allow_losses": "a run ends where more than half of the documents cannot be used",
    "packing": "no token is spent on padding; the documents of a row do not see each other",
    "holdout": "enough documents to measure with, few enough to miss",
    "target": "its mean is the teacher's whole distribution",
    "kd_weight": "the teacher alone; below 1, a student fits text better that its teacher was not trained on",
    "compare": "a second training takes as long as the first",
    "temperature": "the teacher's distribution as it is",
    "warmup": "the first steps are careful while AdamW's averages settle",
    "schedule": "ends gently, at a tenth of the peak",
    "weight_decay": "the usual for fine-tuning",
    "clip_norm": "one bad batch cannot throw the student off",
    "seed": "the same seed gives the same student",
    "quantization": "full weights: streaming saves more memory, at no loss",
    "student_quantization": "full weights: streaming saves more memory, at no loss",
    "cache_dir": "records stay in the run's folder",
    "processes": "one process uses all cores; each further one needs as much memory again",
    "keep_checkpoints": "the newest may be half-learnt, the one before it is not",
}
"""Reasons for defaults that depend on neither the models nor the machine."""


def answer_values(question: Question, answer: Proposal) -> dict[str, tuple[Any, str]]:
    """Return the search's decisions with reasons."""
    teacher, student = answer.teacher.setting, answer.student.setting
    return {
        "student_layers": (answer.layers, _layers(question, answer)),
        "sequence_length": (answer.length, _length(question, answer)),
        "record_size": (question.config.record_size, _record(question, answer)),
        "teacher_batch": (teacher.batch, _teacher_batch(question, answer)),
        "student_batch": (student.batch, _student_batch(question, answer)),
        "gradient_accumulation": (student.accumulation, _accumulation(question, answer)),
        "gradient_checkpointing": (student.checkpointing, _checkpointing(answer)),
        "layer_by_layer": (teacher.layer_by_layer, _streaming(question, answer)),
        "optimizer": (student.optimizer, _optimizer(question, answer)),
        "lora_rank": (student.rank, _adapter(question, answer)),
        "student_layer_by_layer": (student.layer_by_layer, _student_streaming(question, answer)),
        "student_sharded": (student.sharded, _sharding(question, answer)),
        "lora_alpha": _alpha(question, answer),
        "lora_targets": (question.config.lora_targets, _targets(answer)),
        "cpu_offload": (answer.offload, _offload(question, answer)),
        "keep_memory": (answer.keeps_memory, _keep_memory(question, answer)),
    }


def samples(text: Text, length: int, counted: str) -> str:
    """Return the number of rows as a reason."""
    rows = text.train_rows(length)
    if rows is None:
        return counted
    return f"all of them: {counted}, some {rows:,} rows of {length}"


def too_many_rows(asked: int | None, there_are: int | None) -> str:
    """Return a remark on a number of rows that the text does not have; empty if it has them or this is not known."""
    if asked is None or there_are is None or asked <= there_are:
        return ""
    return f"The text has about {there_are:,} rows: all are taken"


def processes(predicted: Mapping[str, PhasePrediction], answer: Proposal, threads: int, alone: Plan) -> str:
    """Return what several processes take and bring, by phase, beside the plan of one process alone."""
    count = answer.student.setting.ranks
    each = threads_each(threads, count)
    told = [
        f"{name} {format_bytes(phase.peak_bytes // count)} each, {format_bytes(phase.peak_bytes)} in all, about "
        f"{format_duration(phase.seconds)}"
        for name, phase in predicted.items()
    ]
    shared = f"{each} thread{'s' if each > 1 else ''} each"
    if count > threads:
        shared = f"{count} processes on {threads} thread{'s' if threads > 1 else ''} take turns, which is no faster"
    if answer.student.setting.layer_by_layer and "student" in predicted:
        told.append("each reads the student's layers twice a step")
    return f"{'; '.join([shared, *told])}. {_of_one(alone)}"


def _of_one(alone: Plan) -> str:
    """Return what the same takes with one process, which uses all threads."""
    told = [
        f"{name} {format_bytes(phase.peak_bytes)}, about {format_duration(phase.seconds)}"
        for name, phase in alone.predicted.items()
    ]
    fits = "" if alone.misfit is None else ", which does not fit"
    return f"With one process: {'; '.join(told)}{fits}"


def learning_rate(parameters: int, *, rank: int = 0) -> str:
    """The size it belongs to."""
    usual = f"usual for {format_count(parameters)} parameters"
    return f"{RATE_FACTOR:g} times the rate {usual}: an adapter begins at zero" if rank else usual


def checkpoint_every(every: int, seconds: float, total: int | None) -> str:
    """Return the maximum loss of work as a reason."""
    if total is not None and every >= total:
        return f"once at the end: the {total} steps take about {format_duration(total * seconds)}"
    return f"at most {format_duration(every * seconds)} of work are lost in a crash"


def evaluations(look_seconds: float, step_seconds: float, total: int | None) -> str:
    """Return the cost of each evaluation as a reason."""
    each = f"each takes about {format_duration(look_seconds)}, its checkpoint included"
    return each if total is None else f"{each}; the steps take {format_duration(total * step_seconds)}"


def _layers(question: Question, answer: Proposal) -> str:
    if answer.layers is None:
        return "only for a student that is cut from the teacher"
    share = f"{answer.layers} of {question.teacher.num_layers} layers"
    size = f"{share}, {format_count(answer.shape.parameters)} parameters"
    if answer.layers == max(1, question.teacher.num_layers // 2):
        return f"{size}; measurements on the text select them; --until teacher shows the cost of other depths"
    return f"{size}: more do not fit {_budget(question)}"


def _length(question: Question, answer: Proposal) -> str:
    length, reason = default_length(question.text, question.length_limit)
    if answer.length < length and question.config.sequence_length is None:
        cut = f"; {whole_told(question.text, answer.length)}" if question.text.conversations else ""
        return f"rows of {min(length, 2 * answer.length)} tokens do not fit {_budget(question)}{cut}"
    return reason


def _record(question: Question, answer: Proposal) -> str:
    each = disk.record_bytes(question.config.record_size, question.teacher.vocab_size)
    total = disk.cache_bytes(
        question.text.all_tokens(answer.length), question.config.record_size, question.teacher.vocab_size
    )
    return f"about {each:.0f} bytes a token, {format_bytes(total)} in all"


def _teacher_batch(question: Question, answer: Proposal) -> str:
    footprint = answer.teacher.footprint
    said = f"{format_bytes(footprint.peak_bytes)} of {_budget(question)}"
    return f"the fastest that fits: {said}" if question.budget.fits(footprint) else f"{said}, which does not fit"


def _student_batch(question: Question, answer: Proposal) -> str:
    setting, peak = answer.student.setting, answer.student.footprint.peak_bytes
    double = student_footprint(answer.shape, replace(setting, batch=2 * setting.batch)).peak_bytes
    said = f"{format_bytes(peak)} of {_budget(question)}"
    if double > _room(question):
        return f"{said}; {2 * setting.batch}, with all else as it is, would need {format_bytes(double)}"
    return f"{said}; more is hardly faster"


def _accumulation(question: Question, answer: Proposal) -> str:
    setting = answer.student.setting
    _, said = effective_rows(question.text, answer.length)
    rows = setting.batch * setting.accumulation
    if setting.is_lean and rows < effective_rows(question.text, answer.length)[0]:
        whole = student_footprint(answer.shape, replace(setting, accumulation=2)).peak_bytes
        return f"{rows} rows a step, so that no gradient is ever whole; added-up ones need {format_bytes(whole)}"
    if question.config.student_batch is None and question.config.gradient_accumulation is None:
        return said
    return f"{rows:,} rows, {rows * answer.length:,} tokens a step"


def _checkpointing(answer: Proposal) -> str:
    setting = answer.student.setting
    with_it = student_footprint(answer.shape, replace(setting, checkpointing=True)).peak_bytes
    without = student_footprint(answer.shape, replace(setting, checkpointing=False)).peak_bytes
    saved = format_bytes(max(0, without - with_it))
    if setting.layer_by_layer:
        return "streamed layers are read and computed again on the way back"
    if setting.checkpointing:
        return f"saves {saved} of {format_bytes(without)}, costs about a third more time"
    would = f"save {saved} and take a third longer" if without > with_it else "save nothing"
    return f"{format_bytes(without)} fit; it would {would}"


def _streaming(question: Question, answer: Proposal) -> str:
    setting = answer.teacher.setting
    whole, streamed = (
        _needed(question, teacher_footprint(question.teacher, replace(setting, layer_by_layer=on)))
        for on in (False, True)
    )
    if setting.layer_by_layer:
        alone = "" if setting.reads_ahead else ", one layer at a time and none read ahead"
        return f"streamed: {format_bytes(streamed)}{alone}; the whole teacher needs {format_bytes(whole)}"
    if not question.budget.fits(answer.teacher.footprint):
        return f"the whole teacher needs {format_bytes(whole)} of {_budget(question)}"
    return f"the whole teacher fits: {format_bytes(whole)} of {_budget(question)}"


def _optimizer(question: Question, answer: Proposal) -> str:
    setting = answer.student.setting
    full = student_footprint(answer.shape, replace(setting, optimizer="adamw"))
    small = student_footprint(answer.shape, replace(setting, optimizer="adamw-8bit"))
    saved = format_bytes(max(0, full.peak_bytes - small.peak_bytes))
    if setting.optimizer == "adamw-8bit":
        step = step_seconds(answer.shape, setting, question.rates)
        what = "8-bit states, and no gradient that is ever whole," if setting.is_lean else "8-bit states"
        return f"{what} save {saved}; a step takes about {format_duration(step)}"
    fit = f"32-bit states of {format_bytes(full.parts['optimizer'])} fit"
    return (
        f"{fit}; 8-bit ones are slower on a CPU" if question.budget.where.is_host else f"{fit}: no need for 8-bit ones"
    )


def _adapter(question: Question, answer: Proposal) -> str:
    setting = answer.student.setting
    whole = student_footprint(answer.shape, replace(setting, rank=0)).peak_bytes
    if not setting.rank:
        if not answer.fits:
            return f"all weights are trained, which takes {format_bytes(whole)}"
        return f"all weights are trained, which fits: {format_bytes(whole)} of {_budget(question)}"
    trained = setting.trained_parameters(answer.shape)
    share = trained / answer.shape.parameters
    small = format_bytes(answer.student.footprint.peak_bytes)
    return (
        f"an adapter of {format_count(trained)} parameters, {share:.1%} of the student's: it takes {small}, and "
        f"training all weights {format_bytes(whole)} of {_budget(question)}; it learns somewhat less from the same text"
    )


def _student_streaming(question: Question, answer: Proposal) -> str:
    setting = answer.student.setting
    if not setting.rank:
        return "only for an adapter"
    whole, streamed = (
        _needed(question, student_footprint(answer.shape, replace(setting, layer_by_layer=on))) for on in (False, True)
    )
    if setting.layer_by_layer:
        alone = "" if setting.reads_ahead else ", one layer at a time and none read ahead"
        return f"streamed twice a step: {format_bytes(streamed)}{alone}; the whole student needs {format_bytes(whole)}"
    return f"the whole student fits: {format_bytes(whole)} of {_budget(question)}"


def _sharding(question: Question, answer: Proposal) -> str:
    setting = answer.student.setting
    if question.ranks == 1:
        return "only for several processes"
    if setting.rank:
        return "only where all weights are trained: each process has the whole adapter"
    if (why := why_not_sharded(answer.shape, question.config)) is not None and not setting.sharded:
        return f"each process has the whole student: {why.partition(';')[0]}"
    whole, divided = (
        format_bytes(_needed(question, student_footprint(answer.shape, replace(setting, sharded=on))))
        for on in (False, True)
    )
    if setting.sharded:
        return f"each process holds a part: {divided}; a whole student in each needs {whole} of {_budget(question)}"
    return f"a whole student fits in each process: {whole} of {_budget(question)}; a part would take {divided}"


def _alpha(question: Question, answer: Proposal) -> tuple[float | None, str]:
    rank, given = answer.student.setting.rank, question.config.lora_alpha
    if not rank:
        return given, "only for an adapter"
    return given or ALPHA_PER_RANK * rank, "as large as the rank: the adapter's product is added as it is"


_REST = 0.3  # of a decoder that is no linear layer; norms and biases are a few per cent


def _targets(answer: Proposal) -> str:
    if not answer.student.setting.rank:
        return "only for an adapter"
    linears = answer.shape.adapted(())
    kinds = ", ".join(dict.fromkeys(linear.name.rpartition(".")[2] for linear in linears))
    covered = sum(linear.rows * linear.columns * linear.share for linear in linears) * answer.shape.num_layers
    left = 1 - covered / sum(answer.shape.layer_parameters)
    more = (
        f"; {left:.0%} of the decoder, such as experts, is no linear layer and stays as it is" if left > _REST else ""
    )
    return f"all linear layers of the decoder: {kinds}{more}"


def _offload(question: Question, answer: Proposal) -> str:
    if not answer.offload:
        return "nothing has to leave the compute device"
    kept = student_footprint(answer.shape, replace(answer.student.setting, cpu_offload=False)).peak_bytes
    where = "files" if question.budget.where.is_host else "main memory"
    peak = format_bytes(answer.student.footprint.peak_bytes)
    return f"inactive tensors are kept in {where}: the student takes {peak} instead of {format_bytes(kept)}"


def _keep_memory(question: Question, answer: Proposal) -> str:
    kept = keeping_memory(question, answer)
    peak = format_bytes(max(_needed(question, part.footprint) for part in (kept.teacher, kept.student)))
    if answer.keeps_memory:
        return f"roomy: freed memory stays for the next step, {peak} at most of {_budget(question)}"
    if answer.offload and question.budget.where.is_host:
        return "tight: freed memory goes back to the system at once, as inactive tensors are in files"
    return (
        f"tight: freed memory goes back to the system at once; kept, a phase would take {peak} of {_budget(question)}"
    )


def _needed(question: Question, footprint: Footprint) -> int:
    return footprint.needed_bytes if question.budget.where.is_host else footprint.peak_bytes


def _budget(question: Question) -> str:
    return format_bytes(_room(question))


def _room(question: Question) -> int:
    """The part of the budget that a phase may fill: on a GPU, the driver's context is in it too."""
    return max(0, question.budget.memory_bytes - question.budget.context_bytes)
