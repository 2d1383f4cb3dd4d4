"""Formulas of each phase's memory, from the models' sizes and the settings. They load and measure nothing.

The constants were fitted to measured peaks of real phases; ``tests/benchmarks/predicted_memory.py`` repeats that and
prints how far off the worst prediction is. Peaks are counted as everywhere: on the CPU the anonymous memory of the
phase's process, on a GPU what the allocator holds, to which the CUDA context comes.

Legend: B rows in a micro-batch, T tokens in a row, H hidden size, I intermediate size, V rows of the head.
"""

from __future__ import annotations

from dataclasses import replace

from engine.hardware import Gpu
from engine.planner.activations import forward_bytes, is_unfused, kept_bytes, layer_bytes, mask_bytes
from engine.planner.phase_settings import Footprint, StudentSetting, TeacherSetting
from engine.planner.shape import PRECISION_BYTES, ModelShape
from engine.planner.sizes import head_chunk_tokens, wave_tokens

MIB = 2**20

BUCKET_BYTES = 32 * MIB
"""Gradients that ranks add up at a time."""

# Python with torch, transformers' modelling code, numpy and h5py, before any weight. 80 MiB of it are what
# transformers.modeling_utils imports (sympy, torch._dynamo, torch.distributed). Each layer's modules take some more.
_INTERPRETER = 266 * MIB
_MODULES_OF_LAYER = 1 * MIB
# bitsandbytes brings networkx and torch._inductor; it is only imported when it is used.
_BITSANDBYTES = 42 * MIB
# peft brings accelerate and bitsandbytes.
_PEFT = 58 * MIB
# A prediction may be off by some percent: chosen settings leave that much of a budget free.
SPARED = 0.95
# On a GPU: the CUDA libraries in main memory, and the context on the card until it was measured there. 426 MiB were
# seen on an RTX 6000 Ada before any kernel was loaded (https://github.com/unslothai/unsloth-zoo/pull/1053), and kernels
# come to it.
_CUDA_RAM = 900 * MIB
CUDA_CONTEXT = 600 * MIB
_CONTEXT_GROWTH = 64 * MIB
# Scratch memory of the libraries that multiply matrices (8 MiB a handle and stream, 32 MiB on a data centre's GPU), and
# what is lost as the allocator takes memory in pieces of 2 and 20 MiB. Not measured yet.
_WORKSPACES = 64 * MIB


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
    tokens = setting.batch * setting.sequence_length
    number = PRECISION_BYTES[setting.precision]
    is_stored_so = shape.stored_precision == setting.precision and setting.quantization == "none"
    outside = (shape.embedding + shape.head + shape.other) * number
    layer = max(shape.layer_parameters)
    mapped = 0
    if setting.layer_by_layer:
        # Two slots: the layer at work, and the one that is read meanwhile; where weights are quantised as they arrive,
        # one slot for the largest. The head's rows lie there too when no layer does, and beyond them in memory of their
        # own; the embedding is read a few rows at a time.
        is_whole = setting.quantization == "none"
        slots = ((2 if setting.reads_ahead else 1) * layer if is_whole else _largest_weight(shape)) * number
        head = shape.head_matrix * number
        weights = shape.other * number + slots
        beyond = max(0, head - slots) if setting.reads_ahead else 0
        head_rows = beyond + (_HEAD_SLICE if head > slots else 0)
    else:
        linear = _QUANTIZED_BYTES.get(setting.quantization, number)
        weights = int(sum(shape.layer_parameters) * linear) + outside
        head_rows = 0
        if is_stored_so and setting.device.is_host:
            # The weights are the file's own pages, mapped: no anonymous memory.
            mapped, weights = weights, 0
    if setting.quantization != "none" and setting.layer_by_layer:
        weights += int((2 if setting.reads_ahead else 1) * layer * _QUANTIZED_BYTES[setting.quantization])
    wave = wave_tokens(shape.hidden_size, tokens, layer_by_layer=setting.layer_by_layer, device=setting.device)
    if setting.total_tokens is not None:
        wave = min(wave, max(tokens, setting.total_tokens))
    # A streamed wave has a state for each of its tokens; a whole teacher works on one micro-batch at a time, whose
    # scored positions are gathered beside it.
    waiting = (wave if setting.layer_by_layer else tokens) * shape.hidden_size * number
    gathered = 2 * tokens * shape.hidden_size * number
    in_layers = forward_bytes(shape, setting.batch, setting.sequence_length, number, is_unfused(shape, setting))
    if setting.quantization != "none" and setting.device.is_host:  # a matrix is unpacked before it is multiplied
        in_layers += _largest_weight(shape) * number
    chunk = head_chunk_tokens(shape.vocab_size, device=setting.device)
    blocks = chunk * shape.vocab_size * (4 * _TEACHER_BLOCKS + (number if number < 4 else 0))
    blocks += chunk * min(setting.record_size, shape.vocab_size) * _DRAW_BYTES
    in_head = int(blocks) + gathered + head_rows
    offloaded = setting.cpu_offload and setting.layer_by_layer
    kernels = _KERNELS if number == 2 and setting.device.is_host else 0
    interpreter = _interpreter_bytes(shape) + (_BITSANDBYTES if setting.quantization != "none" else 0) + kernels
    is_head_higher = in_head >= in_layers
    parts = {
        "weights": weights + (head_rows if is_head_higher else 0),
        "gradients": 0,
        "optimizer": 0,
        "activations": (0 if offloaded else waiting) + (gathered if is_head_higher else in_layers),
        "logits": int(blocks) if is_head_higher else 0,
        "other": interpreter if setting.device.is_host else 0,
    }
    if setting.keeps_memory and setting.device.is_host:
        # Layers and head leave their holes side by side; so does what was needed to load and to check the layers.
        parts["other"] += _KEPT_FREE + _kept_by_libraries(number) + min(in_layers, in_head - head_rows)
        if setting.layer_by_layer:
            parts["other"] += 3 * layer * number // 2
        elif not is_stored_so:
            parts["other"] += shape.embedding * number
    if setting.device.is_host:
        return Footprint(parts, sum(parts.values()), mapped)
    parts["other"] += _WORKSPACES
    if setting.quantization != "none":  # a matrix is unpacked before it is multiplied
        parts["other"] += max(1, layer // 3) * number
    if offloaded:  # one state is on its way out, and the next one on its way in
        parts["activations"] += 2 * tokens * shape.hidden_size * number
    if setting.layer_by_layer:
        staging = 2 * layer * shape.stored_bytes
    else:
        # A whole model is loaded in main memory first: as pages of its file, or converted into memory of its own.
        is_converted = shape.stored_precision != setting.precision
        staging = (sum(shape.layer_parameters) + shape.embedding + shape.head + shape.other) * number * is_converted
        staging = max(staging, layer * shape.stored_bytes)
    # torch's pinned memory comes in powers of two, and each micro-batch waits in a piece of its own.
    piece = max(1, tokens * shape.hidden_size * number)
    pinned = waiting // piece * _power_of_two(piece)
    return Footprint(parts, interpreter + _CUDA_RAM + staging + (pinned if offloaded else 0))


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
    tokens = setting.batch * setting.sequence_length
    number = PRECISION_BYTES[setting.precision]
    parameters = shape.parameters
    states = int(parameters * _STATE_BYTES[setting.optimizer])
    chunk = min(tokens, head_chunk_tokens(shape.vocab_size, device=setting.device))
    block = chunk * shape.vocab_size
    logits = block * 4
    if number < 4:
        # The head's own output, and gradients of the logits that wait for the products of the backward pass.
        waiting = max(block * number, min(setting.device.waiting_bytes, tokens * shape.vocab_size * number))
        logits += block * number + waiting
    # Weights stay in float32, so that small steps are not rounded away; the products work on a copy in half precision,
    # which is kept for the backward pass.
    copies = (sum(shape.layer_parameters) + shape.head_matrix) * number if number < 4 else 0
    head_gradient = 4 * shape.head_matrix
    gradients = 4 * parameters
    accumulates = setting.accumulation > 1
    kept = kept_bytes(shape, setting, number) + mask_bytes(shape, setting, number)
    ends = tokens * shape.hidden_size * (4 * _ENDS)
    layer = layer_bytes(shape, setting, number)
    # The backward pass of one layer: gradients of what the layer holds, and with checkpointing the layer's own
    # activations once more.
    backward = layer // 2 + (layer if setting.checkpointing else 0)
    # The gradient of the embedding is made whole beside the one that is there already: of earlier micro-batches, or of
    # the head that it is tied to.
    second = 4 * shape.embedding if accumulates or not shape.head else 0
    pieces = 0
    if setting.optimizer == "adamw-8bit":
        pieces = min(_UPDATE_PIECES, 20 * max(shape.head_matrix, max(shape.layer_parameters) // 4))
    if setting.is_lean:
        # Each gradient is applied as it comes, in the middle of the backward pass.
        moments = {
            "lean": {
                "gradients": 4 * max(shape.layer_parameters) // 3,
                "activations": kept + ends + backward,
                "logits": min(setting.device.loss_factor * _LEAN_LOGITS, 3 * logits),
                "optimizer": pieces,
            }
        }
        copies = sum(shape.layer_parameters) * number if number < 4 else 0
    else:
        all_gradients = gradients if accumulates else head_gradient
        moments = {
            "loss": {"gradients": all_gradients, "activations": kept + ends, "logits": logits},
            # From the last layer to the first, activations are freed and gradients allocated: one of the ends is the
            # peak.
            "last layer": {"gradients": all_gradients, "activations": kept + ends + backward},
            "first layer": {
                "gradients": gradients if accumulates else gradients - 4 * shape.embedding,
                "activations": (0 if setting.checkpointing else layer) + backward,
            },
            "embedding": {"gradients": gradients + second, "activations": 2 * tokens * shape.hidden_size * 4},
            "update": {"gradients": gradients, "optimizer": pieces, "weights": -copies},
        }
        if setting.ranks > 1:
            moments["sum"] = {"gradients": gradients + min(2 * BUCKET_BYTES, gradients), "weights": -copies}
    highest = max(moments.values(), key=lambda moment: sum(moment.values()))
    # On a GPU the states go to main memory; on a CPU weights and states go to a mapped file.
    offloaded = setting.cpu_offload
    in_files = offloaded and setting.device.is_host
    kernels = _TRAINING_KERNELS if number == 2 and setting.device.is_host else 0
    parts = {
        "weights": (0 if in_files else 4 * parameters) + copies + highest.get("weights", 0),
        "gradients": highest["gradients"],
        "optimizer": (0 if offloaded else states) + highest.get("optimizer", 0),
        "activations": highest.get("activations", 0),
        "logits": highest.get("logits", 0),
        "other": _interpreter_bytes(shape) + kernels if setting.device.is_host else 0,
    }
    if setting.keeps_memory and setting.device.is_host:
        comes_and_goes = max(moment.get("activations", 0) + moment.get("logits", 0) for moment in moments.values())
        # The gradient of an embedding is one block, and rarely fits into a hole.
        embedding = 0 if setting.is_lean else 4 * shape.embedding
        parts["other"] += _KEPT_FREE + _kept_by_libraries(number)
        parts["other"] += int(_HOLES * comes_and_goes + _EMBEDDING_HOLE * embedding)
    if setting.device.is_host:
        return Footprint(parts, sum(parts.values()))
    parts["other"] += _WORKSPACES
    return Footprint(parts, _interpreter_bytes(shape) + _CUDA_RAM + 4 * parameters + (states if offloaded else 0))


def _sharded_footprint(shape: ModelShape, setting: StudentSetting) -> Footprint:
    """Return the memory of one of the ranks that divide a student among them (engine.student.sharded); on the CPU.

    Layers are gathered one by one.
    """
    tokens = setting.batch * setting.sequence_length
    number = PRECISION_BYTES[setting.precision]
    share = 1 / setting.ranks
    weights = int(4 * shape.parameters * share)
    states = int(shape.parameters * _STATE_BYTES[setting.optimizer] * share)
    # A tied embedding is gathered with the rest for the whole of a pass; else it and the head are when they are used.
    outside = 4 * (shape.other if shape.head else shape.embedding + shape.other)
    embedding, head = 4 * shape.embedding, 4 * shape.head
    layer = 4 * max(shape.layer_parameters)
    chunk = min(tokens, head_chunk_tokens(shape.vocab_size, device=setting.device))
    logits = chunk * shape.vocab_size * 4
    copies = 0
    if number < 4:
        block = chunk * shape.vocab_size * number
        logits += block + max(block, min(setting.device.waiting_bytes, tokens * shape.vocab_size * number))
        layers = max(shape.layer_parameters) if setting.checkpointing else sum(shape.layer_parameters)
        copies = (layers + shape.head_matrix) * number
    kept = kept_bytes(shape, setting, number) + mask_bytes(shape, setting, number)
    ends = tokens * shape.hidden_size * (4 * _ENDS)
    activations = layer_bytes(shape, setting, number)
    backward = activations // 2 + (activations if setting.checkpointing else 0)
    own = int(4 * shape.parameters * share)
    earlier = own if setting.accumulation > 1 else 0
    # A tied head's gradient is whole until the embedding's is added to it.
    until_the_end = 0 if shape.head else embedding
    # The gathered layer, the next one, and the buffers that they are sent through.
    gathered = outside + _GATHERED_LAYERS * layer
    pieces = 0
    if setting.optimizer == "adamw-8bit":
        pieces = min(_UPDATE_PIECES, 20 * max(shape.head_matrix, max(shape.layer_parameters) // 4))
    moments = {
        "gather": {"weights": 2 * max(outside, embedding), "gradients": earlier},
        "gather head": {"weights": outside + 2 * head, "gradients": earlier, "activations": kept + ends},
        "loss": {
            "weights": outside + head + copies,
            "gradients": earlier + max(head, until_the_end),
            "activations": kept + ends,
            "logits": logits,
        },
        "sum head": {
            "weights": outside,
            "gradients": earlier + int((_SUM_BUFFERS + share) * head),
            "activations": kept + ends,
        },
        "last layer": {
            "weights": gathered + copies,
            "gradients": earlier + int(head * share) + until_the_end + 2 * layer,
            "activations": kept + ends + backward,
        },
        "first layer": {
            "weights": gathered,
            "gradients": max(earlier, own) + until_the_end + 2 * layer,
            "activations": (0 if setting.checkpointing else activations) + backward,
        },
        "sum": {"weights": outside, "gradients": own + _SUM_BUFFERS * max(outside, embedding) + layer},
        "update": {"gradients": own, "optimizer": pieces},
    }
    highest = max(moments.values(), key=lambda moment: sum(moment.values()))
    kernels = _TRAINING_KERNELS if number == 2 else 0
    parts = {
        "weights": weights + highest.get("weights", 0),
        "gradients": highest["gradients"],
        "optimizer": (0 if setting.cpu_offload else states) + highest.get("optimizer", 0),
        "activations": highest.get("activations", 0),
        "logits": highest.get("logits", 0),
        "other": _interpreter_bytes(shape) + kernels + _DISTRIBUTED,
    }
    if setting.keeps_memory:
        comes_and_goes = max(moment.get("activations", 0) + moment.get("logits", 0) for moment in moments.values())
        parts["other"] += _KEPT_FREE + _kept_by_libraries(number) + int(_HOLES * comes_and_goes)
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
    tokens = setting.batch * setting.sequence_length
    number = PRECISION_BYTES[setting.precision]
    trained = shape.adapter_parameters(setting.rank, setting.targets)
    states = int(trained * _STATE_BYTES[setting.optimizer])
    base = _frozen_bytes(shape, setting)
    # Of each adapted layer, [tokens, rank] is kept, and the adapter's own output is added to the layer's.
    products = sum(linear.share for linear in shape.adapted(setting.targets))
    low = int(tokens * number * products * setting.rank)
    mask = mask_bytes(shape, setting, number)
    layer = layer_bytes(shape, setting, number) + low
    is_again = setting.checkpointing or setting.layer_by_layer
    border = tokens * shape.hidden_size * number
    if setting.layer_by_layer:
        # The inputs of every layer, for all micro-batches of a step; and the gradient of one border for each.
        kept = setting.accumulation * (shape.num_layers * border + mask + border)
    else:
        kept = mask + shape.num_layers * (border if is_again else layer)
    ends = tokens * shape.hidden_size * (4 * _ENDS)
    if setting.quantization != "none":  # unpacked for a product
        layer += _largest_weight(shape) * number
    backward = layer // 2 + (layer if is_again else 0)
    gradients = 4 * trained
    grown = gradients if setting.accumulation > 1 and not setting.layer_by_layer else 0
    pieces = min(_UPDATE_PIECES, 20 * trained) if setting.optimizer == "adamw-8bit" else 0
    logits = setting.device.loss_factor * _LEAN_LOGITS
    left = setting.accumulation * mask if setting.layer_by_layer else 0
    moments = {
        "loss": {"gradients": grown, "activations": kept + ends, "logits": logits},
        "last layer": {"gradients": grown, "activations": kept + ends + backward},
        "first layer": {"gradients": gradients, "activations": left + (0 if is_again else layer) + backward},
        "update": {"gradients": gradients, "optimizer": pieces},
        # peft is imported for the adapter's folder, when the moments are gone.
        "export": {"other": _PEFT if setting.device.is_host else 0, "optimizer": -states},
    }
    highest = max(moments.values(), key=lambda moment: sum(moment.values()))
    in_files = setting.cpu_offload and setting.device.is_host
    kernels = _TRAINING_KERNELS if number == 2 and setting.device.is_host else 0
    kernels += _BITSANDBYTES if setting.quantization != "none" else 0
    is_mapped = in_files and not setting.layer_by_layer and setting.quantization == "none"
    parts = {
        "weights": (0 if is_mapped else base) + (0 if in_files else 4 * trained),
        "gradients": highest.get("gradients", 0),
        "optimizer": max(0, (0 if setting.cpu_offload else states) + highest.get("optimizer", 0)),
        "activations": highest.get("activations", 0),
        "logits": highest.get("logits", 0),
        "other": _interpreter_bytes(shape) + kernels + highest.get("other", 0) if setting.device.is_host else 0,
    }
    if setting.keeps_memory and setting.device.is_host:
        comes_and_goes = max(moment.get("activations", 0) + moment.get("logits", 0) for moment in moments.values())
        parts["other"] += _KEPT_FREE + _kept_by_libraries(number) + int(_HOLES * comes_and_goes)
    if setting.device.is_host:
        return Footprint(parts, sum(parts.values()))
    parts["other"] += _WORKSPACES
    offloaded = states if setting.cpu_offload else 0
    layer_staging = 2 * max(shape.layer_parameters) * shape.stored_bytes
    staging = layer_staging if setting.layer_by_layer or setting.quantization != "none" else base
    return Footprint(parts, _interpreter_bytes(shape) + _CUDA_RAM + staging + offloaded)


def _largest_weight(shape: ModelShape) -> int:
    """Parameters of the largest matrix in a decoder layer."""
    return max((linear.rows * linear.columns for linear in shape.linears), default=max(shape.layer_parameters) // 3)


def _kept_by_libraries(number: int) -> int:
    """Memory of libraries in a process that keeps memory; ``number`` is the bytes of a number in its products."""
    return _KEPT_IMPORTS + (_KEPT_KERNELS if number == 2 else 0)


def _frozen_bytes(shape: ModelShape, setting: StudentSetting) -> int:
    """The student's own weights where an adapter is trained: whole, quantised, or two layers at a time."""
    number = PRECISION_BYTES[setting.precision]
    small = _QUANTIZED_BYTES.get(setting.quantization)
    if not setting.layer_by_layer:
        outside = (shape.embedding + shape.head + shape.other) * number
        return int(sum(shape.layer_parameters) * (small or number)) + outside
    layer, ahead = max(shape.layer_parameters), 2 if setting.reads_ahead else 1
    slots = _largest_weight(shape) * number + int(ahead * layer * small) if small else ahead * layer * number
    return slots + shape.other * number


# Layers of a sharded student that are gathered at a time, with the buffer that the next one arrives in.
_GATHERED_LAYERS = 3
# Whole gradients of a group while it is added up: its own, FSDP2's buffer, and gloo's copy of that.
_SUM_BUFFERS = 3
# FSDP2 and what it imports.
_DISTRIBUTED = 40 * MIB
# Where freed memory is kept in the process: what is free at any time, the share of what comes and goes in a step that
# lies between blocks in use and is too small for the next one, and the share of an embedding's gradient.
_KEPT_FREE = 12 * MIB
_HOLES, _EMBEDDING_HOLE = 0.3, 0.75
# There a phase comes out of a process that has imported what all phases need (engine.preloaded), and in half precision
# kernels and their scratch memory lie between the blocks: the demo's phases took 30 MiB more than a process of their
# own in fp32, and 60 to 75 in bf16.
_KEPT_IMPORTS, _KEPT_KERNELS = 30 * MIB, 40 * MIB
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
# Hidden states beside the layers: the last norm's input and output, the scored positions, and their gradient.
_ENDS = 5
# A lean step's head works on slices of 4 MiB: logits, their gradient, the slice's own gradient.
_LEAN_LOGITS = 12 * MIB
# 8-bit moments are unpacked a million elements at a time.
_UPDATE_PIECES = 20 * MIB


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _interpreter_bytes(shape: ModelShape) -> int:
    return _INTERPRETER + shape.num_layers * _MODULES_OF_LAYER
