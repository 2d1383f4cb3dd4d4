"""Search for the fastest settings that fit the budget, and for the nearest ones if the requested ones do not fit.

A setting of the user has one value; an open setting has a list of values. The phases are searched separately, as they
never share memory; only the row length and the number of kept layers concern both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from engine.planner.adapters import default_rank, targets_of
from engine.planner.budget import Budget
from engine.planner.defaults import default_length, effective_rows
from engine.planner.disk import checkpoint_bytes
from engine.planner.footprint import SPARED, reads_ahead, student_footprint, student_reads_ahead, teacher_footprint
from engine.planner.measure import MachineRates
from engine.planner.phase_settings import Footprint, StudentSetting, TeacherSetting
from engine.planner.shape import CARRIES_A_STATE, ModelShape
from engine.planner.sharding import why_not_sharded
from engine.planner.timing import step_seconds, teacher_duration
from engine.planner.workload import Text
from engine.settings.config import RunConfig
from engine.settings.describe import layer_count, layer_list

# Settings whose times differ by less count as equally fast, and the smaller one wins.
_SAME_SPEED = 1.05
_SHORTEST_ROW = 64
# A streamed teacher has been measured at nine tenths of the speed and more, but it reads the disk all the time: it is
# not taken where the whole one fits.
_STREAMING_COSTS = 1.25
# Ranks that divide the student wait for each other in every layer: that is not taken where a whole one fits.
_SHARDING_COSTS = 1.25


@dataclass(frozen=True)
class Question:
    """Inputs of the search.

    Attributes:
        student: the student, or the teacher when it is cut from it.
        cut: whether the student is cut from the teacher's layers.
        precision: number format of the matrix products of both.
    """

    config: RunConfig
    teacher: ModelShape
    student: ModelShape
    cut: bool
    text: Text
    budget: Budget
    rates: MachineRates
    precision: str

    @property
    def ranks(self) -> int:
        """Return how many processes share the work; the budget and the rates are those of one of them."""
        return self.config.processes

    @property
    def length_limit(self) -> int | None:
        """Return the longest row that both models accept."""
        limits = [shape.max_positions for shape in (self.teacher, self.student) if shape.max_positions is not None]
        return min(limits, default=None)


SettingT = TypeVar("SettingT", TeacherSetting, StudentSetting)


@dataclass(frozen=True)
class Candidate(Generic[SettingT]):
    """One way of doing a phase."""

    setting: SettingT
    footprint: Footprint
    seconds: float


@dataclass(frozen=True)
class Proposal:
    """Settings for both phases.

    Attributes:
        layers: kept of the teacher; None when the student is a model of its own.
        offload: whether inactive tensors are kept off the compute device.
        fits: whether both phases stay within the budget.
        keeps_memory: whether freed memory stays in the phases' processes.
    """

    length: int
    layers: int | None
    offload: bool
    shape: ModelShape
    teacher: Candidate[TeacherSetting]
    student: Candidate[StudentSetting]
    fits: bool
    keeps_memory: bool = False


def recommend(question: Question) -> Proposal:
    """Return the fastest settings that fit, else the smallest that the user's settings allow (``fits`` is False)."""
    smallest: Proposal | None = None
    for rank, layers, length in itertools.product(
        _rank_options(question), _layer_options(question), _length_options(question)
    ):
        config = question.config.model_copy(update={"lora_rank": rank})
        answer = _answer(question, config, length, layers)
        if answer.fits and not _pages_too_much(question, answer):
            return _with_memory_kept(question, answer)
        if smallest is None or (answer.fits, -_needs(answer)) > (smallest.fits, -_needs(smallest)):
            smallest = answer
    assert smallest is not None, "there is always one rank, one length and one number of layers"
    return _with_memory_kept(question, smallest) if smallest.fits else smallest


def _rank_options(question: Question) -> list[int]:
    """Ranks of an adapter in the order of preference: none, and where that does not fit, the usual one."""
    config = question.config
    if config.lora_rank is not None:
        return [config.lora_rank]
    if config.student_sharded and config.processes > 1:
        return [0]  # an adapter is not divided
    usual = default_rank(question.student, targets_of(config.lora_targets))
    if config.wants_adapter:
        return [usual]
    return [0, usual] if question.student.linears else [0]


def _pages_too_much(question: Question, answer: Proposal) -> bool:
    """Return whether a whole student would be kept in files outside memory, where an adapter could be trained.

    Every step would read and write all of these files, which takes minutes on most disks.
    """
    config, setting = question.config, answer.student.setting
    is_open = config.lora_rank is None and config.cpu_offload is None
    if not is_open or setting.rank or not answer.offload or not question.budget.where.is_host:
        return False
    return checkpoint_bytes(answer.shape.parameters, setting.optimizer) > question.budget.ram_bytes


def keeping_memory(question: Question, answer: Proposal) -> Proposal:
    """The same settings, with freed memory kept in the phases' processes."""
    teacher = replace(answer.teacher.setting, keeps_memory=True)
    student = replace(answer.student.setting, keeps_memory=True)
    footprints = teacher_footprint(question.teacher, teacher), student_footprint(answer.shape, student)
    return replace(
        answer,
        teacher=replace(answer.teacher, setting=teacher, footprint=footprints[0]),
        student=replace(answer.student, setting=student, footprint=footprints[1]),
        fits=all(question.budget.fits(footprint) for footprint in footprints),
        keeps_memory=True,
    )


def _with_memory_kept(question: Question, answer: Proposal) -> Proposal:
    """Only spare memory is used for speed: no other setting gets smaller for it."""
    wished = question.config.keep_memory
    if wished is False:
        return answer
    if wished is None and answer.offload and question.budget.where.is_host:
        return answer  # tensors are in files for want of memory: there is none to spare
    kept = keeping_memory(question, answer)
    careful = _careful(question.budget)
    has_room = careful.fits(kept.teacher.footprint) and careful.fits(kept.student.footprint)
    return kept if wished or has_room else answer


def nearest_that_fits(question: Question, asked: Proposal) -> tuple[dict[str, object], Proposal] | None:
    """Return the user's settings that must change, and the result; None if nothing fits.

    As few settings as possible change, each by as little as possible.
    """
    config = question.config.model_copy(update={"lora_rank": asked.student.setting.rank})
    if asked.keeps_memory:
        handing_back = _answer(question, config, asked.length, asked.layers)
        if handing_back.fits:
            return {"keep_memory": False}, handing_back
    names = ("student_batch", "teacher_batch", "gradient_checkpointing", "layer_by_layer", "optimizer")
    fixed = [
        name for name in names if getattr(config, name) not in (None, False, "adamw-8bit") or _refused(config, name)
    ]
    if _refused(config, "cpu_offload"):
        fixed.append("cpu_offload")
    if _refused(config, "student_sharded"):
        fixed.insert(0, "student_sharded")  # changes least of what is learned
    if _refused(config, "student_layer_by_layer"):
        fixed.append("student_layer_by_layer")
    if question.config.lora_rank == 0 and question.student.linears:
        fixed.append("lora_rank")
    if (config.gradient_accumulation or 1) > 1 and config.student_batch is None:
        fixed.append("gradient_accumulation")  # accumulated gradients must be stored
    lengths = _shorter(asked.length) if config.sequence_length is not None else list(_length_options(question))
    layer_options: list[int | None] = list(_layer_options(question))
    if question.cut and config.student_layers is not None:
        layer_options = [*_fewer(layer_count(config.student_layers) or 1)]
    for freed, layers, length in sorted(
        itertools.product(_subsets(fixed), layer_options, lengths),
        key=lambda option: (
            len(option[0]) + (option[1] != asked.layers) + (option[2] != asked.length),
            -(option[1] or 0),
            -option[2],
        ),
    ):
        if not freed and layers == asked.layers and length == asked.length:
            continue
        loosened = config.model_copy(update=_loosened(question, config, freed))
        answer = _answer(question, loosened, length, layers)
        if answer.fits:
            return _changes(config, answer), answer
    return None


def student_candidates(
    question: Question, config: RunConfig, shape: ModelShape, length: int
) -> Iterator[Candidate[StudentSetting]]:
    """Yield all ways to train the student that the settings leave open."""
    rows, _ = effective_rows(question.text, length)
    # Without accumulation there is no full gradient: steps of fewer rows are the last resort.
    fewer_rows = config.gradient_accumulation is None and config.student_batch is None
    for sharded, layer_by_layer, batch, checkpointing, optimizer, in_fewer in itertools.product(
        _sharding_options(question, config, shape),
        _streaming_options(config, shape),
        _batches(config, rows, most=max(1, question.budget.where.most_tokens // length)),
        [False, True] if config.gradient_checkpointing is None else [config.gradient_checkpointing],
        ["adamw", "adamw-8bit"] if config.optimizer is None else [config.optimizer],
        [False, True] if fewer_rows else [False],
    ):
        if in_fewer and (batch == rows or optimizer == "adamw" or config.lora_rank):
            continue
        if layer_by_layer and not checkpointing:
            continue  # streamed layers are always computed again
        setting = StudentSetting(
            batch=batch,
            accumulation=1 if in_fewer else config.gradient_accumulation or max(1, rows // batch),
            sequence_length=length,
            precision=question.precision,
            checkpointing=checkpointing,
            optimizer=optimizer,
            cpu_offload=bool(config.cpu_offload),
            record_size=config.record_size,
            device=question.budget.where,
            packing=config.packing,
            rank=config.lora_rank or 0,
            targets=targets_of(config.lora_targets),
            quantization=config.student_quantization if config.lora_rank else "none",
            layer_by_layer=layer_by_layer,
            ranks=question.ranks,
            sharded=sharded,
        )
        if layer_by_layer:
            budget = question.budget
            on_device = budget.memory_bytes - budget.context_bytes
            ahead = student_reads_ahead(shape, setting, on_device, budget.ram_bytes)
            setting = replace(setting, reads_ahead=ahead)
        seconds = step_seconds(shape, setting, question.rates) / (setting.batch * setting.accumulation)
        if layer_by_layer:
            seconds *= _STREAMING_COSTS
        if sharded:
            seconds *= _SHARDING_COSTS
        if in_fewer:
            seconds *= 1 + rows / batch  # never for speed: small steps learn worse
        yield Candidate(setting, student_footprint(shape, setting), seconds)


def _batches(config: RunConfig, rows: int, *, most: int) -> list[int]:
    """Micro-batches for steps of so many rows, at most ``most``."""
    if config.student_batch is not None:
        return [config.student_batch]
    if config.gradient_accumulation is not None:
        return _powers(min(most, max(1, rows // config.gradient_accumulation)))
    return _powers(min(most, rows))


def _streaming_options(config: RunConfig, shape: ModelShape) -> list[bool]:
    """Whether the student's layers may be streamed: only under an adapter, with a plain head, and computed again."""
    if not config.lora_rank:
        return [False]
    wished = config.student_layer_by_layer
    is_open = wished is None and config.gradient_checkpointing is not False and shape.has_plain_head
    is_open = is_open and not (config.packing and shape.model_type in CARRIES_A_STATE)
    return [False, True] if is_open else [bool(wished)]


def _sharding_options(question: Question, config: RunConfig, shape: ModelShape) -> list[bool]:
    """Whether the ranks may divide the student: only one that is trained whole, with a plain head, and cut in rows."""
    if question.ranks == 1 or config.lora_rank or why_not_sharded(shape, config) is not None:
        return [False]
    return [False, True] if config.student_sharded is None else [config.student_sharded]


def teacher_candidates(question: Question, config: RunConfig, length: int) -> Iterator[Candidate[TeacherSetting]]:
    """Yield all ways of scoring that the settings leave open."""
    tokens = max(question.text.all_tokens(length), 16_384)
    most = max(1, question.budget.where.most_tokens // length)
    batches = _powers(most) if config.teacher_batch is None else [config.teacher_batch]
    streamed = [False, True] if config.layer_by_layer is None else [config.layer_by_layer]
    for batch, layer_by_layer in itertools.product(batches, streamed):
        setting = TeacherSetting(
            batch=batch,
            sequence_length=length,
            precision=question.precision,
            layer_by_layer=layer_by_layer,
            quantization=config.quantization,
            cpu_offload=bool(config.cpu_offload),
            record_size=config.record_size,
            device=question.budget.where,
            total_tokens=question.text.all_tokens(length) or None,
        )
        if layer_by_layer:
            budget = question.budget
            on_device = budget.memory_bytes - budget.context_bytes
            setting = replace(setting, reads_ahead=reads_ahead(question.teacher, setting, on_device, budget.ram_bytes))
        seconds = teacher_duration(question.teacher, setting, -(-tokens // question.ranks), question.rates).seconds
        if layer_by_layer:
            seconds *= _STREAMING_COSTS
        yield Candidate(setting, teacher_footprint(question.teacher, setting), seconds)


def _answer(question: Question, config: RunConfig, length: int, layers: int | None) -> Proposal:
    """Return the fastest settings at this length; inactive tensors are offloaded only if nothing else fits."""
    if config.cpu_offload is not None:
        return _answer_with(question, config, length, layers, config.cpu_offload)
    kept = _answer_with(question, config, length, layers, False)
    if kept.fits:
        return kept
    moved = _answer_with(question, config, length, layers, True)
    return moved if moved.fits or _needs(moved) < _needs(kept) else kept


def _answer_with(question: Question, config: RunConfig, length: int, layers: int | None, offload: bool) -> Proposal:
    config = config.model_copy(update={"cpu_offload": offload})
    shape = question.student if layers is None else question.student.with_layers(layers, named_layers(config, layers))
    budget = question.budget
    teacher = _choose(list(teacher_candidates(question, config, length)), budget, lambda s: s.layer_by_layer)
    student = _choose(
        list(student_candidates(question, config, shape, length)),
        budget,
        lambda s: (s.sharded, s.layer_by_layer, s.checkpointing, s.optimizer),
    )
    fits = budget.fits(teacher.footprint) and budget.fits(student.footprint)
    return Proposal(length, layers, offload, shape, teacher, student, fits)


def _choose(
    candidates: Sequence[Candidate[SettingT]], budget: Budget, mode: Callable[[SettingT], object]
) -> Candidate[SettingT]:
    """Return the fastest that fits with a margin, else the fastest that fits, else the smallest."""
    for limit in (_careful(budget), budget):
        fitting = [candidate for candidate in candidates if limit.fits(candidate.footprint)]
        if fitting:
            fastest = min(fitting, key=lambda candidate: candidate.seconds)
            alike = [
                candidate
                for candidate in fitting
                if mode(candidate.setting) == mode(fastest.setting)
                and candidate.seconds <= _SAME_SPEED * fastest.seconds
            ]
            return min(alike, key=lambda candidate: candidate.footprint.peak_bytes)
    return min(candidates, key=lambda candidate: budget.excess(candidate.footprint))


def _careful(budget: Budget) -> Budget:
    """Return the budget minus a margin."""
    return replace(
        budget,
        memory_bytes=int(budget.memory_bytes * SPARED),
        ram_bytes=int(budget.ram_bytes * SPARED),
    )


def _length_options(question: Question) -> Iterator[int]:
    config, limit = question.config, question.length_limit
    if config.sequence_length is not None:
        yield config.sequence_length
        return
    length, _ = default_length(question.text, limit)
    yield length
    while length > _SHORTEST_ROW:
        length = max(_SHORTEST_ROW, length // 2)
        yield length


def _layer_options(question: Question) -> Iterator[int | None]:
    if not question.cut:
        yield None
    elif question.config.student_layers is not None:
        yield layer_count(question.config.student_layers)
    else:
        layers = max(1, question.teacher.num_layers // 2)
        yield from _fewer(layers)


def named_layers(config: RunConfig, count: int) -> list[int] | None:
    """Return the layers that the user named, if a student of this many layers keeps these."""
    named = layer_list(config.student_layers)
    return named if named is not None and len(named) == count else None


def _fewer(layers: int) -> Iterator[int]:
    yield layers
    while layers > 1:
        layers //= 2
        yield layers


def _shorter(length: int) -> list[int]:
    lengths = [length]
    while lengths[-1] > _SHORTEST_ROW:
        lengths.append(max(_SHORTEST_ROW, lengths[-1] // 2))
    return lengths


def _powers(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length())]


def _subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    for size in range(len(names) + 1):
        yield from itertools.combinations(names, size)


def _refused(config: RunConfig, name: str) -> bool:
    """Return whether the user switched off a setting that saves memory."""
    return name in config.model_fields_set and getattr(config, name) is False


def _loosened(question: Question, config: RunConfig, freed: tuple[str, ...]) -> dict[str, object]:
    values: dict[str, object] = {name: None for name in freed}
    if "lora_rank" in freed:
        values["lora_rank"] = default_rank(question.student, targets_of(config.lora_targets))
    if "student_batch" in freed and config.student_batch is not None and config.gradient_accumulation is not None:
        # The requested rows per step, in smaller micro-batches.
        values |= {"student_batch": 1, "gradient_accumulation": config.student_batch * config.gradient_accumulation}
    return values


def _changes(config: RunConfig, answer: Proposal) -> dict[str, object]:
    teacher, student = answer.teacher.setting, answer.student.setting
    found: dict[str, object] = {
        "student_batch": student.batch,
        "gradient_accumulation": student.accumulation,
        "teacher_batch": teacher.batch,
        "gradient_checkpointing": student.checkpointing,
        "layer_by_layer": teacher.layer_by_layer,
        "optimizer": student.optimizer,
        "lora_rank": student.rank,
        "student_layer_by_layer": student.layer_by_layer,
        "student_sharded": student.sharded,
        "cpu_offload": answer.offload,
        "sequence_length": answer.length,
        "student_layers": answer.layers,
    }
    asked = {name: getattr(config, name) for name in found} | {"student_layers": layer_count(config.student_layers)}
    return {name: value for name, value in found.items() if asked[name] not in (None, value)}


def _needs(answer: Proposal) -> int:
    return max(answer.teacher.footprint.peak_bytes, answer.student.footprint.peak_bytes)
