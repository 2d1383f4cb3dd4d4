"""plan(): from a request to all settings with reasons and predictions.

It reads config.json, safetensors headers and the size of the text, and starts nothing. The pieces are elsewhere: the
machine in place.py, the models in models.py, amounts of text in workload.py, defaults in defaults.py, bytes in
footprint.py, seconds in timing.py, the search in recommend.py, the sentences in reasons.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from engine.data.sample_limits import SampleLimits
from engine.data.sources import PYTHON_DOCS
from engine.errors import DoesNotFit, Problem, SettingsError
from engine.format import format_bytes
from engine.jobs import jobs_of
from engine.machine.hardware import Hardware
from engine.planner import defaults, disk, misfit, reasons, timing
from engine.planner.adapters import RATE_FACTOR, check_adapter
from engine.planner.demo import DEMO_REASONS, DEMO_SETTINGS
from engine.planner.known_depths import known_depths
from engine.planner.measure import MachineRates
from engine.planner.models import Models, models_for
from engine.planner.packing import packing_for
from engine.planner.place import Place
from engine.planner.precision import precision_for, smaller_precision
from engine.planner.prediction import Choice, PhasePrediction, Plan
from engine.planner.preparing import prepare_bytes
from engine.planner.recommend import Proposal, Question, recommend
from engine.planner.sharding import check_sharding
from engine.planner.sizes import head_chunk_tokens
from engine.planner.text import Amount, count_tokens
from engine.planner.workload import Text
from engine.settings.config import RunConfig

# Work of engine.teacher.depth, in tokens through the whole teacher: seven passes of 1,024 tokens for the layers'
# influence, and one for each cut that is compared or shown, most of them with half of the layers.
_CUT_TOKENS = 12_000


def plan(
    config: RunConfig,
    *,
    hardware: Hardware | None = None,
    machine: MachineRates | None = None,
    strict: bool = True,
) -> Plan:
    """Resolve every setting of a run and predict what it will take.

    Args:
        config: the request; its values are not changed.
        hardware: this machine, detected now if not given. torch is asked once per GPU whether it can use it, which
            takes some seconds the first time.
        machine: its rates; stored ones, or cautious figures, if not given or given for another device.
        strict: raise if it does not fit; otherwise the plan has ``misfit`` set.

    Raises:
        RequestError: a model is missing or cannot be used, or a setting contradicts the models.
        DoesNotFit: with the nearest setting that fits.
    """
    asked = _Asked.of(_with_demo(config), hardware, machine)
    _check_length(asked.question)
    asked, answer = _answered(asked)
    work = _work(asked, answer)
    predicted = _predict(asked, answer, work)
    disk_bytes = _disk_bytes(asked, answer)
    problem = _misfit(asked, answer, disk_bytes)
    if problem is not None and strict:
        raise problem
    text_rows = replace(asked.question.text, samples=None).train_rows(answer.length)
    notes = {"student": " ".join(asked.models.notes), "samples": reasons.too_many_rows(config.samples, text_rows)}
    if asked.models.cut:
        notes["student_layers"] = known_depths(config.cache_dir, config.teacher)
    if config.processes > 1:
        one = config.model_copy(update={"processes": 1})
        alone = plan(one, hardware=asked.place.hardware, machine=machine, strict=False)
        notes["processes"] = reasons.processes(predicted, answer, asked.place.threads, alone)
    elif not asked.place.budget.where.is_host:
        work["processes"] = 1, "one process uses the whole GPU"
    choices, resolved = _resolve(config, {**asked.values(answer), **work}, notes)
    text, vocab_size = asked.question.text, asked.question.teacher.vocab_size
    little = None
    if "student" in predicted:
        trained = answer.student.setting.trained_parameters(answer.shape)
        little = defaults.too_little_text(text.train_tokens(answer.length) or 0, trained)
    preparing = timing.prepare_duration(
        text.all_tokens(answer.length), asked.place.rates, is_documentation=config.data in (None, PYTHON_DOCS)
    )
    return Plan(
        settings=resolved,
        choices=choices,
        predicted=predicted,
        prepare_bytes=prepare_bytes(vocab_size, config.data),
        prepare_seconds=preparing.seconds,
        prepare_seconds_error=preparing.error,
        disk_bytes=disk_bytes,
        total_steps=work["total_steps"][0],
        misfit=problem,
        text_rows=text_rows,
        little_text=little,
        jobs=jobs_of(
            resolved,
            vocab_size=vocab_size,
            head_chunk_tokens=head_chunk_tokens(vocab_size, device=asked.place.budget.where),
        ),
    )


@dataclass(frozen=True)
class _Asked:
    """A request with what is known before anything is chosen.

    Attributes:
        config: the request, with the demo's settings.
        place: where the run takes place.
        models: teacher and student.
        amount: of text.
        packing_reason, precision_reason: the reasons for these settings.
        question: for the search.
    """

    config: RunConfig
    place: Place
    models: Models
    amount: Amount
    packing_reason: str
    precision_reason: str
    question: Question

    @classmethod
    def of(cls, config: RunConfig, hardware: Hardware | None, rates: MachineRates | None) -> _Asked:
        place = Place.of(config, hardware, rates)
        models = models_for(config, place.budget)
        check_adapter(config, models.shape_after_cut(config))
        packing, packing_reason = packing_for(config, models.student_shape)
        config = config.model_copy(update={"packing": packing})
        check_sharding(config, models.student_shape)
        amount = count_tokens(config.data or PYTHON_DOCS, config, models.teacher, models.teacher_shape.vocab_size)
        precision, precision_reason = precision_for(config, place.budget, place.hardware, place.rates, models)
        question = Question(
            config=config,
            teacher=models.teacher_shape,
            student=models.student_shape,
            cut=models.cut,
            text=Text(amount.tokens, config.holdout, config.samples, amount.lengths),
            budget=place.budget_of_each(config.processes),
            rates=place.rates,
            precision=precision,
        )
        return cls(config, place, models, amount, packing_reason, precision_reason, question)

    def values(self, answer: Proposal) -> dict[str, tuple[Any, str]]:
        """Settings that follow from the place, the models and the search, each with its reason."""
        config, place, models, budget = self.config, self.place, self.models, self.place.budget
        return {
            "teacher": (models.teacher, models.reasons.get("teacher", "")),
            "student": (models.student, models.reasons.get("student", "")),
            "data": (config.data or PYTHON_DOCS, "no --data was given: Python's own documentation"),
            "packing": (config.packing, self.packing_reason),
            "precision": (self.question.precision, self.precision_reason),
            "memory_budget": (config.memory_budget or budget.memory_bytes, budget.reasons["memory_budget"]),
            "ram_budget": (config.ram_budget or budget.ram_bytes, budget.reasons["ram_budget"]),
            "device": (budget.device, budget.reasons["device"]),
            "threads": (place.threads, f"all {place.hardware.cores} cores that may be used"),
            "output_dir": (place.folder, place.folder_reason),
            "samples": (config.samples, reasons.samples(self.question.text, answer.length, self.amount.told)),
            **reasons.answer_values(self.question, answer),
        }


def _answered(asked: _Asked) -> tuple[_Asked, Proposal]:
    """The search's answer; in half precision where nothing else fits."""
    question, place = asked.question, asked.place
    answer = recommend(question)
    if answer.fits:
        return asked, answer
    smaller = smaller_precision(asked.config, question.precision, place.budget, place.hardware, place.rates)
    if smaller is None:
        return asked, answer
    in_half = replace(question, precision=smaller)
    other = recommend(in_half)
    if not other.fits:
        return asked, answer
    reason = f"fp32 does not fit {format_bytes(place.budget.memory_bytes)}; half the bytes do"
    return replace(asked, question=in_half, precision_reason=reason), other


def _misfit(asked: _Asked, answer: Proposal, disk_bytes: int) -> DoesNotFit | None:
    if not answer.fits:
        return misfit.memory(asked.question, answer)
    if (problem := misfit.preparing(asked.question)) is not None:
        return problem
    free = asked.place.hardware.disk_free_bytes
    if disk_bytes > free:
        return misfit.disk(disk_bytes, free, asked.place.folder, asked.config, asked.question, answer)
    return None


def _with_demo(config: RunConfig) -> RunConfig:
    """Return the request with the demo's defaults for settings that the user did not set."""
    if not config.demo:
        return config
    open_settings = {name: value for name, value in DEMO_SETTINGS.items() if getattr(config, name) is None}
    if config.epochs is not None:
        open_settings.pop("steps", None)
    return config.model_copy(update=open_settings)


def _check_length(question: Question) -> None:
    length, limit = question.config.sequence_length, question.length_limit
    if length is not None and limit is not None and length > limit:
        shapes = (question.teacher, question.student)
        which = next(shape.name for shape in shapes if shape.max_positions == limit)
        raise SettingsError([Problem("sequence_length", length, f"{which} takes no more than {limit} tokens")])


def _work(asked: _Asked, answer: Proposal) -> dict[str, tuple[Any, str]]:
    """Resolve epochs, steps, the learning rate and the checkpoint interval."""
    config, question, rates = asked.config, asked.question, asked.place.rates
    setting = answer.student.setting
    rows = question.text.train_rows(answer.length)
    in_a_step = setting.batch * setting.accumulation
    per_epoch = None if rows is None else math.ceil(rows / in_a_step)
    found: dict[str, tuple[Any, str]] = {}
    if config.steps is not None:
        found["epochs"] = (None, f"--steps {config.steps} sets the length")
        total: int | None = config.steps
    else:
        epochs, why = (config.epochs, "") if config.epochs is not None else defaults.epochs_for(per_epoch)
        found["epochs"] = (epochs, why)
        # The epochs are one sequence of rows, so only the last step of all may be short.
        total = None if rows is None else math.ceil(epochs * rows / in_a_step)
    counted = "not known before the text is read" if total is None else f"{total:,} steps of {in_a_step} rows"
    found["steps"] = (config.steps, counted)
    found["total_steps"] = (total, "")
    parameters = answer.shape.parameters
    usual = defaults.learning_rate_for(parameters)
    if setting.rank:
        usual = float(f"{RATE_FACTOR * usual:.1e}")
    found["learning_rate"] = (config.learning_rate or usual, reasons.learning_rate(parameters, rank=setting.rank))
    seconds = timing.step_seconds(answer.shape, setting, rates)
    checkpoint_bytes = disk.checkpoint_bytes(setting.trained_parameters(answer.shape), setting.optimizer)
    every = config.checkpoint_every or defaults.checkpoint_every(
        seconds, checkpoint_bytes, timing.written_bytes_per_second(rates), total
    )
    found["checkpoint_every"] = (every, reasons.checkpoint_every(every, seconds, total))
    looked_at = min(defaults.EVALUATION_ROWS * answer.length, question.text.holdout_tokens(answer.length))
    look = timing.evaluation_seconds(answer.shape, setting, looked_at, rates)
    look += checkpoint_bytes / timing.written_bytes_per_second(rates)
    looks = config.evaluations or defaults.evaluations_for(total, seconds, look)
    found["evaluations"] = (looks, reasons.evaluations(look, seconds, total))
    found["looks_seconds"] = (looks * look, "")
    return found


def _predict(asked: _Asked, answer: Proposal, work: dict[str, tuple[Any, str]]) -> dict[str, PhasePrediction]:
    config, question, rates = asked.config, asked.question, asked.place.rates
    text, length, context = question.text, answer.length, asked.place.budget.context_bytes
    # The choice of layers reads some text several times, with ever fewer layers.
    read = text.all_tokens(length) + (_CUT_TOKENS if question.cut else 0)
    scoring = timing.teacher_duration(question.teacher, answer.teacher.setting, -(-read // question.ranks), rates)
    training = timing.student_duration(
        answer.shape,
        answer.student.setting,
        (work["total_steps"][0] or 0) * (1 if config.compare == "none" else 2),
        text.holdout_tokens(length),
        rates,
        work["looks_seconds"][0] * (1 if config.compare == "none" else 2),
        SampleLimits.of(bool(text.conversations)),
    )
    phases = {"teacher": (answer.teacher.footprint, scoring), "student": (answer.student.footprint, training)}
    if config.until is not None:
        phases.pop("student")
    if config.until == "prepare":
        phases.clear()
    return {
        name: PhasePrediction(
            peak_bytes=footprint.peak_bytes * question.ranks + context,
            seconds=duration.seconds,
            seconds_error=duration.error,
            parts={
                part: size * question.ranks + (context if part == "other" else 0)
                for part, size in footprint.parts.items()
            },
            ram_bytes=footprint.ram_bytes * question.ranks,
        )
        for name, (footprint, duration) in phases.items()
    }


def _disk_bytes(asked: _Asked, answer: Proposal) -> int:
    config, question = asked.config, asked.question
    return disk.run_bytes(
        tokens=question.text.all_tokens(answer.length),
        record_size=config.record_size,
        vocab_size=question.teacher.vocab_size,
        student=answer.shape,
        setting=answer.student.setting,
        # Those of a second training: the newest, the best, and the one that is being written.
        keep_checkpoints=config.keep_checkpoints + (0 if config.compare == "none" else 3),
        is_cut=asked.models.cut,
    )


def _resolve(
    config: RunConfig, values: dict[str, tuple[Any, str]], notes: dict[str, str]
) -> tuple[tuple[Choice, ...], RunConfig]:
    """Return every setting as a choice, and the complete configuration; the user's values stay."""
    choices, resolved = [], {}
    for name in RunConfig.model_fields:
        if name in reasons.NOT_CHOICES:
            continue
        given = getattr(config, name)
        by_user = name in config.model_fields_set and given is not None
        note = notes.get(name, "")
        value, reason = values.get(name, (given, reasons.DEFAULTS.get(name, "")))
        if by_user:
            choices.append(Choice(name, given, "user", f"you set it. {note}" if note else "you set it"))
            continue
        if config.demo and name in DEMO_SETTINGS:
            reason = DEMO_REASONS.get(name, reason)
        resolved[name] = value
        choices.append(Choice(name, value, "planner", f"{reason}. {note}" if note else reason))
    return tuple(choices), config.model_copy(update=resolved)
