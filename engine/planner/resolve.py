"""plan(): from a request to all settings with reasons and predictions.

It reads config.json, safetensors headers and the size of the text, and starts nothing. The pieces are elsewhere: the
models in models.py, amounts in workload.py, bytes in footprint.py, seconds in timing.py, the search in recommend.py,
the sentences in reasons.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from engine import hardware as machine_hardware
from engine.config import RunConfig
from engine.errors import DoesNotFit, Problem, SettingsError
from engine.format import format_bytes
from engine.hardware import Hardware
from engine.jobs import jobs_of
from engine.machine.gpu_check import checked, torch_version
from engine.planner import disk, misfit, reasons, timing, workload
from engine.planner.adapters import RATE_FACTOR, check_adapter
from engine.planner.budget import Budget, budget_for
from engine.planner.demo import DEMO_REASONS, DEMO_SETTINGS
from engine.planner.live_runs import live_runs
from engine.planner.measure import MachineRates, machine_rates
from engine.planner.models import FROM_TEACHER, Models, models_for
from engine.planner.packing import packing_for
from engine.planner.precision import precision_for, smaller_precision
from engine.planner.prediction import Choice, PhasePrediction, Plan
from engine.planner.recommend import Proposal, Question, recommend
from engine.planner.run_folder import folder_for
from engine.planner.sharding import check_sharding
from engine.planner.sizes import head_chunk_tokens
from engine.planner.text import count_tokens
from engine.planner.workload import Text
from engine.ranks import threads_each
from engine.runs import announced_runs, default_runs_path

# Work of engine.teacher.depth, in tokens through the whole teacher: seven passes of 1,024 tokens for the layers'
# influence, and one for each cut that is compared or shown, most of them with half of the layers.
_CUT_TOKENS = 12_000

DEFAULT_DATA = "python-docs"


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
    wished = _with_demo(config)
    folder, folder_reason = folder_for(wished)
    if hardware is None:
        hardware = machine_hardware.detect(folder)
    if wished.device != "cpu":
        hardware = checked(hardware)
    budget = budget_for(wished, hardware, live_runs(default_runs_path(), announced_runs()), torch_version())
    threads = wished.threads or hardware.cores
    _check_processes(wished, budget)
    given_rates = machine
    if machine is None or machine.device != budget.device:
        machine = machine_rates(device=budget.device, threads=threads_each(threads, wished.processes))
    if wished.processes > 1:
        whole = given_rates or machine_rates(device=budget.device, threads=threads)
        machine = machine.shared(wished.processes, threads, whole.memory_bytes_per_second)
    models = models_for(wished, budget)
    check_adapter(wished, models.shape_after_cut(wished))
    packing, packing_reason = packing_for(wished, models.student_shape)
    wished = wished.model_copy(update={"packing": packing})
    check_sharding(wished, models.student_shape)
    data = wished.data or DEFAULT_DATA
    amount = count_tokens(data, wished, models.teacher, models.teacher_shape.vocab_size)
    text = Text(amount.tokens, wished.holdout, wished.samples, amount.lengths)
    precision, precision_reason = precision_for(wished, budget, hardware, machine, models)
    question = Question(
        config=wished,
        teacher=models.teacher_shape,
        student=models.student_shape,
        cut=models.cut,
        text=text,
        budget=_of_each(budget, wished.processes),
        rates=machine,
        precision=precision,
    )
    _check_length(question)
    answer = recommend(question)
    smaller = None if answer.fits else smaller_precision(wished, precision, budget, hardware, machine)
    if smaller is not None:
        in_half = replace(question, precision=smaller)
        if (other := recommend(in_half)).fits:
            question, answer = in_half, other
            room = format_bytes(budget.memory_bytes)
            precision, precision_reason = smaller, f"fp32 does not fit {room}; half the bytes do"
    work = _work(wished, question, answer, machine)
    predicted = _predict(question, answer, work, machine, wished)
    disk_bytes = _disk_bytes(question, answer, wished, models)
    problem: DoesNotFit | None = None
    if not answer.fits:
        problem = misfit.memory(question, answer)
    elif disk_bytes > hardware.disk_free_bytes:
        problem = misfit.disk(disk_bytes, hardware.disk_free_bytes, folder, wished, question, answer)
    if problem is not None and strict:
        raise problem
    values: dict[str, tuple[Any, str]] = {
        "teacher": (models.teacher, models.reasons.get("teacher", "")),
        "student": (models.student, models.reasons.get("student", "")),
        "data": (data, "no --data was given: the documentation that every Python carries"),
        "packing": (packing, packing_reason),
        "precision": (precision, precision_reason),
        "memory_budget": (wished.memory_budget or budget.memory_bytes, budget.reasons["memory_budget"]),
        "ram_budget": (wished.ram_budget or budget.ram_bytes, budget.reasons["ram_budget"]),
        "device": (budget.device, budget.reasons["device"]),
        "threads": (threads, f"all {hardware.cores} cores that may be used"),
        "output_dir": (folder, folder_reason),
        "samples": (wished.samples, reasons.samples(text, answer.length, amount.told)),
        **reasons.answer_values(question, answer),
        **work,
    }
    notes = {"student": " ".join(models.notes)}
    if wished.processes > 1:
        one = config.model_copy(update={"processes": 1})
        alone = plan(one, hardware=hardware, machine=given_rates, strict=False)
        notes["processes"] = reasons.processes(predicted, wished.processes, threads, alone)
    choices, resolved = _resolve(config, values, notes)
    total_steps = work["total_steps"][0]
    text_rows = replace(text, samples=None).train_rows(answer.length)
    little = None
    if "student" in predicted:
        trained = answer.student.setting.trained_parameters(answer.shape)
        little = workload.too_little_text(text.train_tokens(answer.length) or 0, trained)
    vocab_size = models.teacher_shape.vocab_size
    jobs = jobs_of(
        resolved, vocab_size=vocab_size, head_chunk_tokens=head_chunk_tokens(vocab_size, device=budget.where)
    )
    return Plan(resolved, choices, predicted, disk_bytes, total_steps, problem, text_rows, little, jobs)


def _with_demo(config: RunConfig) -> RunConfig:
    """Return the request with the demo's defaults for settings that the user did not set."""
    if not config.demo:
        return config
    open_settings = {name: value for name, value in DEMO_SETTINGS.items() if getattr(config, name) is None}
    if config.epochs is not None:
        open_settings.pop("steps", None)
    return config.model_copy(update=open_settings)


def _check_processes(config: RunConfig, budget: Budget) -> None:
    """Several ranks compute on processors; on GPUs they have not been tried.

    Raises:
        SettingsError: several were asked for on a GPU.
    """
    if config.processes > 1 and not budget.where.is_host:
        accepted = f"several processes compute on the CPU only; add --device cpu, or use 1 on {budget.device}"
        raise SettingsError([Problem("processes", config.processes, accepted)])


def _of_each(budget: Budget, processes: int) -> Budget:
    """The part of a budget that each of several processes may take."""
    if processes == 1:
        return budget
    return replace(budget, memory_bytes=budget.memory_bytes // processes, ram_bytes=budget.ram_bytes // processes)


def _check_length(question: Question) -> None:
    length, limit = question.config.sequence_length, question.length_limit
    if length is not None and limit is not None and length > limit:
        shapes = (question.teacher, question.student)
        which = next(shape.name for shape in shapes if shape.max_positions == limit)
        raise SettingsError([Problem("sequence_length", length, f"{which} takes no more than {limit} tokens")])


def _work(config: RunConfig, question: Question, answer: Proposal, rates: MachineRates) -> dict[str, tuple[Any, str]]:
    """Resolve epochs, steps, the learning rate and the checkpoint interval."""
    setting = answer.student.setting
    rows = question.text.train_rows(answer.length)
    in_a_step = setting.batch * setting.accumulation
    per_epoch = None if rows is None else math.ceil(rows / in_a_step)
    found: dict[str, tuple[Any, str]] = {}
    if config.steps is not None:
        found["epochs"] = (None, f"--steps {config.steps} says when to stop")
        total: int | None = config.steps
    else:
        epochs, why = (config.epochs, "") if config.epochs is not None else workload.epochs_for(per_epoch)
        found["epochs"] = (epochs, why)
        # The epochs are one sequence of rows, so only the last step of all may be short.
        total = None if rows is None else math.ceil(epochs * rows / in_a_step)
    counted = "not known before the text is read" if total is None else f"{total:,} steps of {in_a_step} rows"
    found["steps"] = (config.steps, counted)
    found["total_steps"] = (total, "")
    parameters = answer.shape.parameters
    usual = workload.learning_rate_for(parameters)
    if setting.rank:
        usual = float(f"{RATE_FACTOR * usual:.1e}")
    found["learning_rate"] = (config.learning_rate or usual, reasons.learning_rate(parameters, rank=setting.rank))
    seconds = timing.step_seconds(answer.shape, setting, rates)
    checkpoint_bytes = disk.checkpoint_bytes(setting.trained_parameters(answer.shape), setting.optimizer)
    every = config.checkpoint_every or workload.checkpoint_every(
        seconds, checkpoint_bytes, timing.written_bytes_per_second(rates), total
    )
    found["checkpoint_every"] = (every, reasons.checkpoint_every(every, seconds, total))
    looked_at = min(workload.EVALUATION_ROWS * answer.length, question.text.holdout_tokens(answer.length))
    look = timing.evaluation_seconds(answer.shape, setting, looked_at, rates)
    look += checkpoint_bytes / timing.written_bytes_per_second(rates)
    looks = config.evaluations or workload.evaluations_for(total, seconds, look)
    found["evaluations"] = (looks, reasons.evaluations(look, seconds, total))
    found["looks_seconds"] = (looks * look, "")
    return found


def _predict(
    question: Question, answer: Proposal, work: dict[str, tuple[Any, str]], rates: MachineRates, config: RunConfig
) -> dict[str, PhasePrediction]:
    text, length = question.text, answer.length
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
    )
    phases = {"teacher": (answer.teacher.footprint, scoring), "student": (answer.student.footprint, training)}
    if config.until is not None:
        phases.pop("student")
    if config.until == "prepare":
        phases.clear()
    return {
        name: PhasePrediction(
            peak_bytes=footprint.peak_bytes * question.ranks,
            seconds=duration.seconds,
            seconds_error=duration.error,
            parts={name: size * question.ranks for name, size in footprint.parts.items()},
            ram_bytes=footprint.ram_bytes * question.ranks,
        )
        for name, (footprint, duration) in phases.items()
    }


def _disk_bytes(question: Question, answer: Proposal, config: RunConfig, models: Models) -> int:
    return disk.run_bytes(
        tokens=question.text.all_tokens(answer.length),
        record_size=config.record_size,
        vocab_size=question.teacher.vocab_size,
        student=answer.shape,
        optimizer=answer.student.setting.optimizer,
        # Those of a second training: the newest, the best, and the one that is being written.
        keep_checkpoints=config.keep_checkpoints + (0 if config.compare == "none" else 3),
        from_teacher=models.student == FROM_TEACHER,
        in_files=answer.offload and question.budget.where.is_host,
        loaded_in_files=question.ranks if answer.student.setting.sharded else 0,
        trained_parameters=answer.student.setting.trained_parameters(answer.shape),
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
