"""Formulas of each phase's memory, from the models' sizes and the settings. They load and measure nothing.

The memory of the imports is that of this installation (:mod:`engine.machine.torch_memory`).

The constants were fitted to measured peaks of real phases; ``tests/benchmarks/predicted_memory.py`` repeats that and
prints how far off the worst prediction is. Peaks are counted as everywhere: on the CPU the anonymous memory of the
phase's process, on a GPU what the allocator holds; the plan adds the driver's context.

Legend: B rows in a micro-batch, T tokens in a row, H hidden size, I intermediate size, V rows of the head.
"""

from __future__ import annotations

from dataclasses import replace

from engine.machine import kernels, torch_memory
from engine.machine.allocator import MAPPED_FROM_BYTES
from engine.machine.hardware import Gpu
from engine.planner.activations import forward_bytes, is_unfused, layer_bytes
from engine.planner.moments import (
    Moments,
    StepSizes,
    adapter_moments,
    highest,
    largest_weight,
    lean_moments,
    sharded_moments,
    whole_moments,
)
from engine.planner.phase_settings import Footprint, StudentSetting, TeacherSetting
from engine.planner.shape import PRECISION_BYTES, ModelShape
from engine.planner.sizes import head_chunk_tokens, is_large_block, wave_tokens

MIB = 2**20

# Python with torch, transformers' modelling code, numpy and h5py, before any weight. 80 MiB of it are what
# transformers.modeling_utils imports (sympy, torch._dynamo, torch.distributed). Each layer's modules take some more.
_INTERPRETER = 274 * MIB
_MODULES_OF_LAYER = 1 * MIB
# bitsandbytes brings networkx and torch._inductor; it is only imported when it is used.
_BITSANDBYTES = 42 * MIB
# A prediction may be off by some percent: chosen settings leave that much of a budget free.
SPARED = 0.95
# On a GPU: the CUDA libraries in main memory (1,070 to 1,260 MiB beside the rest with torch 2.11 on an H200), and the
# context on the card until it was measured there. 426 MiB were seen on an RTX 6000 Ada before any kernel was loaded
# (https://github.com/unslothai/unsloth-zoo/pull/1053), 680 on an H200 after the probe, and kernels come to it.
_CUDA_RAM = 1200 * MIB
CUDA_CONTEXT = 600 * MIB
_CONTEXT_GROWTH = 64 * MIB
# Scratch memory of the libraries that multiply matrices (8 MiB a handle and stream, 32 MiB on a data centre's GPU), and
# what is lost as the allocator takes memory in pieces of 2 and 20 MiB. On an H200, phases then took 0.89 to 1.04 times
# what is predicted with it.
_WORKSPACES = 96 * MIB


def context_bytes_on(gpu: Gpu | None) -> int:
    """Return a phase's GPU memory outside of torch's allocator: context, kernels, libraries.

    The planner's probe measures it if the driver reports it; some kernels are loaded later.
    """
    return CUDA_CONTEXT if gpu is None or gpu.context_bytes is None else gpu.context_bytes + _CONTEXT_GROWTH


# Bytes of a quantised parameter, with the scales.
_QUANTIZED_BYTES = {"int8": 1.02, "nf4": 0.5625}
# States of AdamW for each parameter; 8-bit keeps two bytes and two float32 scales for every 256.
_STATE_BYTES = {"adamw": 8.0, "adamw-8bit": 2.0 + 8 / 256}


def teacher_footprint(shape: ModelShape, setting: TeacherSetting) -> Footprint:
    """Return the memory of the teacher phase: the higher of two moments, in the layers and in the lm_head."""
    tokens, number = setting.batch * setting.sequence_length, PRECISION_BYTES[setting.precision]
    weights, mapped, head_rows = _teacher_weights(shape, setting, number)
    waiting = _waiting_bytes(shape, setting, number)
    # The scored positions of a micro-batch are gathered beside it.
    gathered = 2 * tokens * shape.hidden_size * number
    in_layers = forward_bytes(shape, setting.batch, setting.sequence_length, number, is_unfused(shape, setting))
    if setting.quantization != "none" and setting.device.is_host:  # a matrix is unpacked before it is multiplied
        in_layers += largest_weight(shape) * number
    blocks = _scoring_blocks(shape, setting, number)
    in_head = blocks + gathered + head_rows
    is_head_higher = in_head >= in_layers
    offloaded = setting.cpu_offload and setting.layer_by_layer
    parts = {
        "weights": weights + (head_rows if is_head_higher else 0),
        "gradients": 0,
        "optimizer": 0,
        "activations": (0 if offloaded else waiting) + (gathered if is_head_higher else in_layers),
        "logits": blocks if is_head_higher else 0,
        "other": 0,
    }
    if setting.device.is_host:
        parts["other"] = _teacher_interpreter(shape, setting, number)
        if setting.keeps_memory:
            # Layers and head leave their holes side by side; a large block of logits does not fit where one was.
            is_large = is_large_block(shape.vocab_size, head_chunk_tokens(shape.vocab_size))
            holes = max(min(in_layers, in_head - head_rows), int(_HEAD_HOLES * blocks) if is_large else 0)
            kept = _KEPT_FREE + _kept_by_libraries(number) + holes
            parts["other"] += kept + _kept_from_loading(shape, setting, number)
        return Footprint(parts, sum(parts.values()), mapped)
    parts["other"] = _WORKSPACES
    if setting.quantization != "none":  # a matrix is unpacked before it is multiplied
        parts["other"] += max(1, max(shape.layer_parameters) // 3) * number
    if offloaded:  # one state is on its way out, and the next one on its way in
        parts["activations"] += 2 * tokens * shape.hidden_size * number
    ram = _teacher_interpreter(shape, setting, number) + _CUDA_RAM + _teacher_staging(shape, setting, number)
    return Footprint(parts, ram + (_pinned_bytes(waiting, tokens * shape.hidden_size * number) if offloaded else 0))


def _is_stored_so(shape: ModelShape, setting: TeacherSetting) -> bool:
    """Whether the weights are computed with as they are in their file."""
    return shape.stored_precision == setting.precision and setting.quantization == "none"


def _teacher_weights(shape: ModelShape, setting: TeacherSetting, number: int) -> tuple[int, int, int]:
    """Return the bytes of weights in memory, of pages of their file, and of head rows that are there in the head."""
    if setting.layer_by_layer:
        return _streamed_weights(shape, setting, number)
    linear = _QUANTIZED_BYTES.get(setting.quantization, number)
    outside = (shape.embedding + shape.head + shape.other) * number
    weights = int(sum(shape.layer_parameters) * linear) + outside
    if _is_stored_so(shape, setting) and setting.device.is_host:
        return 0, weights, 0  # the file's own pages, mapped: no anonymous memory
    return weights, 0, 0


def _streamed_weights(shape: ModelShape, setting: TeacherSetting, number: int) -> tuple[int, int, int]:
    """As :func:`_teacher_weights`, of a teacher that is read layer by layer.

    There are two slots: the layer at work, and the one that is read meanwhile; where weights are quantised as they
    arrive, one slot for the largest. The head's rows are stored there too when no layer does, and beyond them in memory
    of their own; the embedding is read a few rows at a time.
    """
    layer = max(shape.layer_parameters)
    layers = 2 if setting.reads_ahead else 1
    slots = (layers * layer if setting.quantization == "none" else largest_weight(shape)) * number
    head = shape.head_matrix * number
    weights = shape.other * number + slots
    beyond = max(0, head - slots) if setting.reads_ahead else 0
    head_rows = beyond + (_HEAD_SLICE if head > slots else 0)
    if setting.quantization != "none":
        weights += int(layers * layer * _QUANTIZED_BYTES[setting.quantization])
    return weights, 0, head_rows


def _waiting_bytes(shape: ModelShape, setting: TeacherSetting, number: int) -> int:
    """Hidden states: of each token of a streamed wave; a whole teacher works on one micro-batch at a time."""
    tokens = setting.batch * setting.sequence_length
    if not setting.layer_by_layer:
        return tokens * shape.hidden_size * number
    wave = wave_tokens(shape.hidden_size, tokens, layer_by_layer=True, device=setting.device)
    if setting.total_tokens is not None:
        wave = min(wave, max(tokens, setting.total_tokens))
    return wave * shape.hidden_size * number


def _scoring_blocks(shape: ModelShape, setting: TeacherSetting, number: int) -> int:
    """Logits of a chunk of positions, and the draw of their ids."""
    chunk = head_chunk_tokens(shape.vocab_size, device=setting.device)
    blocks = chunk * shape.vocab_size * (4 * _TEACHER_BLOCKS + (number if number < 4 else 0))
    return int(blocks + chunk * min(setting.record_size, shape.vocab_size) * _DRAW_BYTES)


def _teacher_interpreter(shape: ModelShape, setting: TeacherSetting, number: int) -> int:
    compiled = _half_kernels(_KERNELS, number) if setting.device.is_host else 0
    interpreter = _interpreter_bytes(shape) if setting.device.is_host else _interpreter_beside_cuda(shape)
    return interpreter + (_BITSANDBYTES if setting.quantization != "none" else 0) + compiled


def _kept_from_loading(shape: ModelShape, setting: TeacherSetting, number: int) -> int:
    """Freed memory of loading and checking the layers, where it stays in the process."""
    return 3 * max(shape.layer_parameters) * number // 2 if setting.layer_by_layer else 0


def _teacher_staging(shape: ModelShape, setting: TeacherSetting, number: int) -> int:
    """Main memory through which weights go to a GPU."""
    layer = max(shape.layer_parameters)
    if setting.layer_by_layer:
        return 2 * layer * shape.stored_bytes
    # A whole model is loaded in main memory first: as pages of its file, or converted into memory of its own.
    is_converted = shape.stored_precision != setting.precision
    whole = (sum(shape.layer_parameters) + shape.embedding + shape.head + shape.other) * number * is_converted
    return max(whole, layer * shape.stored_bytes)


def _pinned_bytes(waiting: int, micro_batch: int) -> int:
    """Torch's pinned memory comes in powers of two, and each micro-batch waits in a piece of its own."""
    piece = max(1, micro_batch)
    return waiting // piece * _power_of_two(piece)


def reads_ahead(shape: ModelShape, setting: TeacherSetting, memory_bytes: int, ram_bytes: int) -> bool:
    """Return whether a streamed teacher has room for two layers; planner and phase both call this.

    Args:
        shape: the teacher.
        setting: how it is run.
        memory_bytes: budget on the compute device, without the CUDA context.
        ram_bytes: budget in main memory.
    """
    footprint = teacher_footprint(shape, replace(setting, layer_by_layer=True, reads_ahead=True))
    return footprint.peak_bytes <= SPARED * memory_bytes and footprint.ram_bytes <= SPARED * ram_bytes


def student_footprint(shape: ModelShape, setting: StudentSetting) -> Footprint:
    """Return the memory of the student phase: weights and states, and the highest of three moments of a step.

    With several ranks it is that of one of them.
    """
    setting = setting.of_rank
    if setting.rank:
        return _adapter_footprint(shape, setting)
    if setting.sharded:
        return _sharded_footprint(shape, setting)
    return _whole_footprint(shape, setting)


def _kept_free(moments: Moments, number: int, more: float = 0.0) -> int:
    """Freed memory of a process that keeps it; ``more`` lies between blocks for another reason than the moments."""
    return _KEPT_FREE + _kept_by_libraries(number) + int(_HOLES * _comes_and_goes(moments) + more)


def _comes_and_goes(moments: Moments) -> int:
    return max(moment.get("activations", 0) + moment.get("logits", 0) for moment in moments.values())


def _whole_footprint(shape: ModelShape, setting: StudentSetting) -> Footprint:
    """Return the memory of a student whose weights are all trained.

    They stay in float32, so that small steps are not rounded away; the products work on a copy in half precision, which
    is kept for the backward pass.
    """
    sizes = StepSizes(shape, setting)
    copied = sum(shape.layer_parameters) + (0 if setting.is_lean else shape.head_matrix)
    copies = copied * sizes.number if sizes.number < 4 else 0
    states = int(shape.parameters * _STATE_BYTES[setting.optimizer])
    held = 0 if setting.cpu_offload else states
    ways = lean_moments if setting.is_lean else whole_moments
    moments = ways(shape, setting, sizes, held, copies)
    peak = highest(moments)
    # On a GPU the states go to main memory; on a CPU weights and states go to a mapped file.
    in_files = setting.cpu_offload and setting.device.is_host
    parts = {
        "weights": (0 if in_files else 4 * shape.parameters) + copies + peak.get("weights", 0),
        "gradients": peak["gradients"],
        "optimizer": held + peak.get("optimizer", 0),
        "activations": peak.get("activations", 0),
        "logits": peak.get("logits", 0),
        "other": 0,
    }
    if setting.device.is_host:
        compiled = _half_kernels(_TRAINING_KERNELS, sizes.number)
        parts["other"] = _interpreter_bytes(shape) + compiled + peak.get("other", 0)
        if setting.keeps_memory:
            # The gradient of an embedding is one block, and rarely fits into a hole. A lean step has none; with moments
            # in files it works on pieces of them (measured: 100 MB more with 49,152 ids of 576, 190 with many rows).
            embedding = 0 if setting.is_lean and not in_files else 4 * shape.embedding
            parts["other"] += _kept_free(moments, sizes.number, _EMBEDDING_HOLE * embedding)
        return Footprint(parts, sum(parts.values()))
    parts["other"] = _WORKSPACES
    ram = _interpreter_beside_cuda(shape) + _CUDA_RAM + 4 * shape.parameters
    return Footprint(parts, ram + (states if setting.cpu_offload else 0))


def _sharded_footprint(shape: ModelShape, setting: StudentSetting) -> Footprint:
    """Return the memory of one of the ranks that divide a student among them (engine.student.sharded); on the CPU.

    Layers are gathered one by one.
    """
    sizes = StepSizes(shape, setting)
    share = 1 / setting.ranks
    states = int(shape.parameters * _STATE_BYTES[setting.optimizer] * share)
    moments = sharded_moments(shape, setting, sizes)
    peak = highest(moments)
    compiled = _half_kernels(_TRAINING_KERNELS, sizes.number)
    parts = {
        "weights": int(4 * shape.parameters * share) + peak.get("weights", 0),
        "gradients": peak["gradients"],
        "optimizer": (0 if setting.cpu_offload else states) + peak.get("optimizer", 0),
        "activations": peak.get("activations", 0),
        "logits": peak.get("logits", 0),
        "other": _interpreter_bytes(shape) + compiled + _DISTRIBUTED,
    }
    if setting.keeps_memory:
        parts["other"] += _kept_free(moments, sizes.number)
    return Footprint(parts, sum(parts.values()))


def student_reads_ahead(shape: ModelShape, setting: StudentSetting, memory_bytes: int, ram_bytes: int) -> bool:
    """As :func:`reads_ahead`, for a streamed student; planner and phase both call this."""
    footprint = student_footprint(shape, replace(setting, layer_by_layer=True, reads_ahead=True))
    return footprint.peak_bytes <= SPARED * memory_bytes and footprint.ram_bytes <= SPARED * ram_bytes


def _adapter_footprint(shape: ModelShape, setting: StudentSetting) -> Footprint:
    """Return the memory of a student that trains a low-rank adapter: its own weights have no gradients.

    They are held in the format of the matrix products, so that no copies are made of them. The loss is computed in
    slices of the vocabulary.
    """
    number, is_host = PRECISION_BYTES[setting.precision], setting.device.is_host
    trained = shape.adapter_parameters(setting.rank, setting.targets)
    states = int(trained * _STATE_BYTES[setting.optimizer])
    base = _frozen_bytes(shape, setting)
    moments = adapter_moments(shape, setting, trained, states)
    if is_host and not setting.keeps_memory:  # at the export, the blocks of a step and the holes between them are gone
        holes = int(_SMALL_HOLES * _small_share(shape, setting, number) * _comes_and_goes(moments))
        moments = {name: moment if name == "export" else {**moment, "other": holes} for name, moment in moments.items()}
    peak = highest(moments)
    in_files = setting.cpu_offload and is_host
    is_mapped = in_files and not setting.layer_by_layer and setting.quantization == "none"
    parts = {
        "weights": (0 if is_mapped else base) + (0 if in_files else 4 * trained),
        "gradients": peak.get("gradients", 0),
        "optimizer": max(0, (0 if setting.cpu_offload else states) + peak.get("optimizer", 0)),
        "activations": peak.get("activations", 0),
        "logits": peak.get("logits", 0),
        "other": 0,
    }
    if is_host:
        compiled = _half_kernels(_TRAINING_KERNELS, number)
        compiled += _BITSANDBYTES if setting.quantization != "none" else 0
        parts["other"] = _interpreter_bytes(shape) + compiled + peak.get("other", 0)
        if setting.keeps_memory:
            parts["other"] += _kept_free(moments, number)
        return Footprint(parts, sum(parts.values()))
    parts["other"] = _WORKSPACES
    layer_staging = 2 * max(shape.layer_parameters) * shape.stored_bytes
    staging = layer_staging if setting.layer_by_layer or setting.quantization != "none" else base
    ram = _interpreter_beside_cuda(shape) + _CUDA_RAM + staging
    return Footprint(parts, ram + (states if setting.cpu_offload else 0))


def _small_share(shape: ModelShape, setting: StudentSetting, number: int) -> float:
    """The share of activations that are blocks of the heap where larger ones are mapped by themselves."""
    tokens = setting.batch * setting.sequence_length
    if tokens * shape.intermediate_size * number < MAPPED_FROM_BYTES:
        return 1.0
    if tokens * shape.hidden_size * number >= MAPPED_FROM_BYTES:
        return 0.0
    wide = tokens * number * shape.intermediate_size * (4 if shape.mlp_matrices > 2 else 2)
    return max(0.0, 1 - wide / layer_bytes(shape, setting, number))


def _kept_by_libraries(number: int) -> int:
    """Memory of libraries in a process that keeps memory; ``number`` is the bytes of a number in its products."""
    return _KEPT_IMPORTS + _half_kernels(_KEPT_KERNELS, number)


def _half_kernels(kernel_bytes: int, number: int) -> int:
    """Memory of the kernels for half precision; none where torch multiplies without oneDNN."""
    return kernel_bytes if number == 2 and kernels.has_half_kernels() else 0


def _frozen_bytes(shape: ModelShape, setting: StudentSetting) -> int:
    """The student's own weights where an adapter is trained: whole, quantised, or two layers at a time."""
    number = PRECISION_BYTES[setting.precision]
    small = _QUANTIZED_BYTES.get(setting.quantization)
    if not setting.layer_by_layer:
        outside = (shape.embedding + shape.head + shape.other) * number
        return int(sum(shape.layer_parameters) * (small or number)) + outside
    layer, ahead = max(shape.layer_parameters), 2 if setting.reads_ahead else 1
    slots = largest_weight(shape) * number + int(ahead * layer * small) if small else ahead * layer * number
    return slots + shape.other * number


# FSDP2 and what it imports.
_DISTRIBUTED = 40 * MIB
# Where freed memory is kept in the process: what is free at any time, the share of what comes and goes in a step that
# is between blocks in use and too small for the next one, and the share of an embedding's gradient.
# They are fitted to 19 settings of both phases in fp32, whose predictions are then 0.94 to 1.08 of the peaks.
_KEPT_FREE = 8 * MIB
_HOLES, _EMBEDDING_HOLE = 0.25, 0.75
# Of the blocks of scoring where they are large: 262,144 ids took 50 MiB more than the blocks, 16,384 and 49,152 none.
_HEAD_HOLES = 0.5
# Where freed memory is handed back, of the activations that are blocks of the heap: each is cut from a larger piece for
# its aligned address, and no block of its size fits where it was. Measured with adapters: 0.5 to 0.7.
_SMALL_HOLES = 0.6
# There a phase comes out of a process that has imported what all phases need (engine.run.preloaded), and in half
# precision kernels and their scratch memory take room between the blocks: the demo's phases took 20 MiB more than a
# process of their own in fp32, and some 60 in bf16 (of the 20, 8 are counted in _INTERPRETER since).
_KEPT_IMPORTS, _KEPT_KERNELS = 12 * MIB, 40 * MIB
# [C, V] float32 matrices that exist at a time in the teacher's scoring: the logits, which become log-probabilities
# where they stand, the probabilities, and a little that the allocator keeps.
_TEACHER_BLOCKS = 2.1
# For each position and id of a record, a block of 128 probabilities is looked through: as float32, as a float64 sum,
# and as what is found.
_DRAW_BYTES = 128 * 16
# Rows of a streamed head are cut into slices of 8 MiB, and a slot holds whole slices only.
_HEAD_SLICE = 8 * MIB
# Matrix products in half precision compile a kernel for each shape they meet, and keep it.
_KERNELS = 5 * MIB
# The backward pass has three shapes of product for each of the forward's.
_TRAINING_KERNELS = 25 * MIB


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _interpreter_bytes(shape: ModelShape) -> int:
    return torch_memory.more_bytes() + _interpreter_beside_cuda(shape)


def _interpreter_beside_cuda(shape: ModelShape) -> int:
    """On a GPU, CUDA's libraries are counted as a whole (:data:`_CUDA_RAM`)."""
    return _INTERPRETER + shape.num_layers * _MODULES_OF_LAYER
