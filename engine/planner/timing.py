"""Seconds of each phase, from this machine's measured rates and the models' sizes.

A forward pass is two operations for each parameter and token, training three times that, and four times where
activations are computed again (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1; Chen et al. 2016 for
recomputation). To that come what moves memory and hardly computes, and what each operation costs by itself: for small
models these are the larger part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.data.sample_limits import SampleLimits
from engine.machine.probed_layer import OPERATIONS_PER_LAYER, WIDTHS, numbers_moved
from engine.planner.defaults import EVALUATION_ROWS
from engine.planner.measure import MachineRates
from engine.planner.phase_settings import StudentSetting, TeacherSetting
from engine.planner.shape import ModelShape
from engine.planner.sizes import wave_tokens

# All imports of a phase take as long as so many imports of torch alone (6.3 s against 2.2). Where freed memory is kept,
# only the first phase imports; the others are copies of its process, which open their files.
_IMPORTS, _COPY_SECONDS = 2.9, 0.5
# Preparing the text, in imports of torch: a token on its way into a row (6 MB of code took 5 s more than 1 MB), and
# Python's documentation with the demo's rows (2.6 s).
_TOKEN_IMPORTS, _DOCUMENTATION_IMPORTS = 1.5e-6, 1.1
# Share by which a prediction may be off: with measured rates, and with cautious figures.
_ERROR_MEASURED, _ERROR_GUESSED = 0.3, 0.8
# A product must bring each weight into the form that its kernel multiplies, however few rows there are. It takes as
# long as so many rows more: 138 were measured in bf16, 60 in fp32 (SmolLM2's layers, 128 rows against 2,048). Rates
# are measured with products of so many rows.
_ROWS_FOR_A_WEIGHT, _MEASURED_ROWS = 100, 512
# Passes over a block of logits: softmax and the draw of a record; the loss and its gradient, for each of three passes.
# A position costs as much as so many logits more, with any vocabulary.
_PASSES_OVER_LOGITS, _LOGITS_PER_POSITION = {"forward": 27, "learn": 8}, 5_000
# Layers that are timed alone find weights and activations in the caches. Whole phases took 1.16 to 1.36 times as long a
# token (SmolLM2 and the demo, fp32 and bf16).
_WHOLE_PHASE = 1.2
# Of a checkpoint or a student, copied and summed up on the way to the disk (977 MB in 2.9 s, 0.7 s of it the disk's).
_PACKED_BYTES_PER_SECOND = 4.5e8
# Samples are written by so many rows at a time.
_SAMPLE_ROWS = 4


@dataclass(frozen=True)
class Duration:
    """A time and half the width of the range that it is good for."""

    seconds: float
    error: float


def teacher_duration(shape: ModelShape, setting: TeacherSetting, tokens: int, rates: MachineRates) -> Duration:
    """How long scoring takes.

    Args:
        shape: the teacher.
        setting: how it is run.
        tokens: tokens of text, those of the hold-out too.
        rates: of this machine.
    """
    compute = tokens * pass_seconds_per_token(
        shape, setting.batch * setting.sequence_length, setting.sequence_length, setting.precision, rates, "forward"
    )
    stored = shape.parameters * shape.stored_bytes
    if setting.layer_by_layer:
        micro_batch = setting.batch * setting.sequence_length
        wave = wave_tokens(shape.hidden_size, micro_batch, layer_by_layer=True, device=setting.device)
        reading = math.ceil(tokens / wave) * stored / rates.disk_read_bytes_per_second
        # The next layer is read while one computes: the slower of the two decides, where there is room for both.
        together = max(compute, reading) if setting.reads_ahead else compute + reading
        work = together + stored / max(1, shape.num_layers) / rates.disk_read_bytes_per_second
    else:
        work = compute + stored / rates.disk_read_bytes_per_second
    return _duration(work, rates, _start_seconds(rates, is_copy=setting.keeps_memory and setting.device.is_host))


def prepare_duration(tokens: int, rates: MachineRates, *, is_documentation: bool) -> Duration:
    """How long it takes to start the first process, check the models' files and make rows of the text.

    Args:
        tokens: of the text, as far as it is read; 0 where their number is not known.
        rates: of this machine.
        is_documentation: the text is that of Python.
    """
    imports = tokens * _TOKEN_IMPORTS + (_DOCUMENTATION_IMPORTS if is_documentation else 0)
    return _duration(imports * rates.torch_seconds, rates, _IMPORTS * rates.torch_seconds)


def step_seconds(shape: ModelShape, setting: StudentSetting, rates: MachineRates) -> float:
    """How long one optimizer step of the student takes.

    The ranks share its rows; each updates all that is trained, and reads all layers where they are streamed.
    """
    setting = setting.of_rank
    micro_batch = setting.batch * setting.sequence_length
    forward = micro_batch * pass_seconds_per_token(
        shape, micro_batch, setting.sequence_length, setting.precision, rates, "learn"
    )
    passes: float = 4 if setting.checkpointing else 3
    trained = setting.trained_parameters(shape)
    if not setting.trains_all:
        # Frozen weights have no gradient, which is one of the three passes; the trained part's products come to it.
        passes = (3 if setting.layer_by_layer else passes - 1) + passes * trained / shape.matmul_parameters
    # AdamW reads and writes weight, gradient and two states; with 8-bit states each block is unpacked and packed again,
    # which on a CPU takes ten times as long (9 ns a parameter against 0.9).
    update = trained * 28 / rates.memory_bytes_per_second
    # Each micro-batch but the first adds its gradient to the sum: two reads and a write.
    adding = (setting.accumulation - 1) * trained * 12 / rates.memory_bytes_per_second
    if setting.optimizer == "adamw-8bit" and setting.device.is_host:
        update *= 10
    compute = setting.accumulation * passes * forward
    if setting.layer_by_layer:
        # Each layer is read on the way forward and on the way back, while the one before it computes.
        reading = 2 * sum(shape.layer_parameters) * shape.stored_bytes / rates.disk_read_bytes_per_second
        compute = max(compute, reading) if setting.reads_ahead else compute + reading
    # Gradients are sent, received and added for each rank but the first.
    exchange = (setting.ranks - 1) * trained * 12 / rates.memory_bytes_per_second
    if setting.sharded:
        # In each micro-batch weights are gathered twice and gradients added up; each rank updates its part alone.
        exchange *= 3 * setting.accumulation
        update /= setting.ranks
    return compute + adding + update + exchange


def evaluation_seconds(shape: ModelShape, setting: StudentSetting, tokens: int, rates: MachineRates) -> float:
    """How long the student takes to read so many tokens of the hold-out."""
    micro_batch = setting.batch * setting.sequence_length
    return tokens * pass_seconds_per_token(
        shape, micro_batch, setting.sequence_length, setting.precision, rates, "forward"
    )


def student_duration(
    shape: ModelShape,
    setting: StudentSetting,
    steps: int,
    holdout_tokens: int,
    rates: MachineRates,
    looks_seconds: float = 0.0,
    limits: SampleLimits = SampleLimits(),  # noqa: B008 - it is frozen
) -> Duration:
    """How long training takes.

    It has an evaluation and samples before and after, and ``looks_seconds`` for the evaluations between, of which the
    last one is the one after where the hold-out is small; the student is written at the end. ``limits`` are those of
    the samples.
    """
    evaluation = evaluation_seconds(shape, setting, holdout_tokens, rates)
    written = 4 * shape.parameters / written_bytes_per_second(rates)
    evaluations = 1 if holdout_tokens <= EVALUATION_ROWS * setting.sequence_length else 2
    ends = evaluations * evaluation + 2 * _samples_seconds(shape, setting, rates, limits) + written
    work = steps * step_seconds(shape, setting, rates) + ends + looks_seconds
    return _duration(work, rates, _start_seconds(rates, is_copy=setting.keeps_memory and setting.device.is_host))


def written_bytes_per_second(rates: MachineRates) -> float:
    """Rate at which a checkpoint or a student is packed and written."""
    return 1 / (1 / rates.disk_write_bytes_per_second + 1 / _PACKED_BYTES_PER_SECOND)


def _samples_seconds(shape: ModelShape, setting: StudentSetting, rates: MachineRates, limits: SampleLimits) -> float:
    """How long the samples before or after the training take, one token of each row after the other."""
    token = _SAMPLE_ROWS * pass_seconds_per_token(shape, _SAMPLE_ROWS, 1, setting.precision, rates, "forward")
    if setting.layer_by_layer:
        limits = limits.of_streamed_student
        token += sum(shape.layer_parameters) * shape.stored_bytes / rates.disk_read_bytes_per_second
    return min(limits.seconds, limits.tokens * token)


def forward_flops_per_token(shape: ModelShape, length: int) -> float:
    """Operations of a forward pass for each token in rows of ``length``: products with weights, and attention."""
    # Scores and their use, half of them masked: T/2 * 2 products of width heads * head_dim.
    attention = shape.num_layers * 2 * length * shape.num_heads * shape.head_dim
    return 2.0 * shape.matmul_parameters + attention


def pass_seconds_per_token(
    shape: ModelShape, micro_batch: int, length: int, precision: str, rates: MachineRates, work: str
) -> float:
    """Seconds a token of one pass through a model.

    Args:
        shape: the model.
        micro_batch: tokens that go through it at a time.
        length: of a row.
        precision: of the products.
        rates: of this machine.
        work: "forward", a pass without gradients; or "learn", one of the three passes of a training step.
    """
    share = wide_share(shape.hidden_size)
    small, large = rates.flops_per_second(precision, "small"), rates.flops_per_second(precision, "large")
    products = 2 * shape.matmul_parameters / (small + share * (large - small))
    products *= (1 + _ROWS_FOR_A_WEIGHT / micro_batch) / (1 + _ROWS_FOR_A_WEIGHT / _MEASURED_ROWS)
    # Scores and their use, half of them masked: T/2 * 2 products of width heads * head_dim.
    width = shape.num_heads * shape.head_dim
    attention = shape.num_layers * 2 * length * width / rates.flops_per_second("fp32", "small")
    narrow, wide = (rates.seconds_per_number(work, precision, size) for size in ("small", "large"))
    moved = shape.num_layers * numbers_moved(shape.hidden_size, shape.intermediate_size)
    moving = moved * (narrow + share * (wide - narrow))
    logits = 4 * _PASSES_OVER_LOGITS[work] * (shape.vocab_size + _LOGITS_PER_POSITION) / rates.memory_bytes_per_second
    launches = shape.num_layers * OPERATIONS_PER_LAYER * rates.seconds_per_operation / micro_batch
    return _WHOLE_PHASE * (products + attention + moving + logits + launches)


def wide_share(hidden: int) -> float:
    """Share of the rates of the wide layer among those of a hidden size: products of small matrices are slower."""
    return min(1.0, max(0.0, (hidden - WIDTHS["small"]) / (WIDTHS["large"] - WIDTHS["small"])))


def _start_seconds(rates: MachineRates, *, is_copy: bool) -> float:
    """How long a phase's process takes before its work."""
    return _COPY_SECONDS if is_copy else _IMPORTS * rates.torch_seconds + rates.device_seconds


def _duration(work: float, rates: MachineRates, start: float) -> Duration:
    share = _ERROR_MEASURED if rates.measured else _ERROR_GUESSED
    return Duration(start + work, 3.0 + share * work)
