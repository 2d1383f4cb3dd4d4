"""The moments of a training step, one of which is the peak: bytes of what comes and goes, for each way to train.

Legend: as in :mod:`engine.planner.footprint`.
"""

from __future__ import annotations

from engine.planner.activations import kept_bytes, layer_bytes, mask_bytes
from engine.planner.phase_settings import StudentSetting
from engine.planner.shape import PRECISION_BYTES, ModelShape
from engine.planner.sizes import head_chunk_tokens

MIB = 2**20

BUCKET_BYTES = 32 * MIB
"""Gradients that ranks add up at a time."""

# peft brings accelerate and bitsandbytes: 52 MiB. Up to 20 of them fit into memory that loading the tokenizer freed.
# Where freed memory is handed back, peft finds none, and two fifths of the tokenizer's memory are left.
_PEFT, _PEFT_BEHIND, _TOKENIZER_STAYS = 52 * MIB, 32 * MIB, 0.43
# A tokenizer in memory, for each byte of tokenizer.json, in a phase's environment: 10 to 14 of SmolLM2's, 13 of 262,144
# whole words; and for each id where there is no such file.
_TOKENIZER_OF_BYTE, _TOKENIZER_OF_ID = 14, 1100
# Layers of a sharded student that are gathered at a time, with the buffer that the next one arrives in.
_GATHERED_LAYERS = 3
# Whole gradients of a group while it is added up: its own, FSDP2's buffer, and gloo's copy of that.
_SUM_BUFFERS = 3
# Hidden states beside the layers: the last norm's input and output, the scored positions, and their gradient.
_ENDS = 5
# The states of the last layer and their gradient, which are left behind a loss in slices.
_ENDS_BEHIND_THE_LOSS = 2
# A lean step's head works on slices of 4 MiB: logits, their gradient, the slice's own gradient.
_LEAN_LOGITS = 12 * MIB
# 8-bit moments are unpacked a million elements at a time.
_UPDATE_PIECES = 20 * MIB

Moments = dict[str, dict[str, int]]
"""Moments of a step by name; each has the bytes of those parts that come and go."""


class StepSizes:
    """Sizes that the moments of a step are made of, in bytes.

    Attributes:
        number: of a number in the matrix products.
        kept: activations of all layers that wait for the backward pass.
        ends: hidden states beside the layers.
        layer: activations of one layer.
        backward: of the backward pass of one layer: gradients of what the layer holds, and with checkpointing the
            layer's own activations once more.
        logits: of a chunk of positions in the loss.
        pieces: optimizer states that are unpacked at a time.
    """

    def __init__(self, shape: ModelShape, setting: StudentSetting) -> None:
        self.number = PRECISION_BYTES[setting.precision]
        tokens = setting.batch * setting.sequence_length
        self.kept = kept_bytes(shape, setting, self.number) + mask_bytes(shape, setting, self.number)
        self.ends = tokens * shape.hidden_size * (4 * _ENDS)
        self.layer = layer_bytes(shape, setting, self.number)
        self.backward = self.layer // 2 + (self.layer if setting.checkpointing else 0)
        self.logits = _logits_bytes(shape, setting, self.number)
        self.pieces = 0
        if setting.optimizer == "adamw-8bit":
            self.pieces = min(_UPDATE_PIECES, 20 * max(shape.head_matrix, max(shape.layer_parameters) // 4))


def _logits_bytes(shape: ModelShape, setting: StudentSetting, number: int) -> int:
    tokens = setting.batch * setting.sequence_length
    block = min(tokens, head_chunk_tokens(shape.vocab_size, device=setting.device)) * shape.vocab_size
    if number == 4:
        return 4 * block
    # The head's own output, and gradients of the logits that wait for the products of the backward pass.
    waiting = max(block * number, min(setting.device.waiting_bytes, tokens * shape.vocab_size * number))
    return block * 4 + block * number + waiting


def highest(moments: Moments) -> dict[str, int]:
    """Return the moment that takes most memory."""
    return max(moments.values(), key=lambda moment: sum(moment.values()))


def _tokenizer_bytes(shape: ModelShape) -> int:
    return _TOKENIZER_OF_BYTE * shape.tokenizer_bytes or _TOKENIZER_OF_ID * shape.vocab_size


def _tokenizer_and_peft(shape: ModelShape, *, keeps_memory: bool) -> int:
    tokenizer = _tokenizer_bytes(shape)
    if not keeps_memory:
        return max(tokenizer, int(_TOKENIZER_STAYS * tokenizer) + _PEFT)
    return tokenizer + max(_PEFT_BEHIND, _PEFT - tokenizer // 4)


def _export(shape: ModelShape, setting: StudentSetting, states: int, copies: int) -> dict[str, int]:
    """The end of the phase: a tokenizer reads the samples; the optimizer's moments and the copies are gone."""
    tokenizer = _tokenizer_bytes(shape) if setting.device.is_host else 0
    return {"gradients": 0, "other": tokenizer, "optimizer": -states, "weights": -copies}


def lean_moments(shape: ModelShape, setting: StudentSetting, sizes: StepSizes, states: int, copies: int) -> Moments:
    """The moments of a step that applies each gradient as it comes, in the middle of the backward pass.

    An evaluation has whole logits of a chunk, which are more than that where the vocabulary is large.

    Args:
        shape: the student.
        setting: how it is trained.
        sizes: of the step.
        states: bytes of the optimizer's moments in memory.
        copies: bytes of the weights' copies for the products.
    """
    slices = min(setting.device.loss_factor * _LEAN_LOGITS, 3 * sizes.logits)
    is_tied = not shape.head
    return {
        # The head's rows are updated slice by slice; a tied head's after the backward pass.
        "head": {
            "gradients": 0,
            "activations": sizes.ends + (0 if is_tied else sizes.kept),
            "logits": slices,
            "optimizer": sizes.pieces,
        },
        "loss": {"gradients": 0, "activations": sizes.kept + sizes.ends, "logits": slices},
        "last layer": {
            "gradients": 4 * max(shape.layer_parameters) // 3,
            "activations": sizes.kept + sizes.ends + sizes.backward,
            "optimizer": min(sizes.pieces, 20 * largest_weight(shape)),
        },
        "evaluation": {
            "gradients": 0,
            "activations": sizes.ends,
            # In half precision a plain head is evaluated in slices of the vocabulary.
            "logits": slices if sizes.number < 4 and shape.has_plain_head else sizes.logits,
        },
        "export": _export(shape, setting, states, copies),
    }


def whole_moments(shape: ModelShape, setting: StudentSetting, sizes: StepSizes, states: int, copies: int) -> Moments:
    """The moments of a step with whole gradients; arguments as for :func:`lean_moments`.

    From the last layer to the first, activations are freed and gradients allocated: one of the ends is the peak. On a
    GPU the gradient of the embedding is made whole beside the one that is there already: of earlier micro-batches, or
    of the head that it is tied to. On a CPU its rows alone are.
    """
    accumulates = setting.accumulation > 1
    gradients = 4 * shape.parameters
    earlier = gradients if accumulates else 4 * shape.head_matrix
    is_whole = not setting.device.is_host and (accumulates or not shape.head)
    second = 4 * shape.embedding if is_whole else 0
    states = setting.batch * setting.sequence_length * shape.hidden_size * 4
    moments = {
        "loss": {"gradients": earlier, "activations": sizes.kept + sizes.ends, "logits": sizes.logits},
        "last layer": {"gradients": earlier, "activations": sizes.kept + sizes.ends + sizes.backward},
        "first layer": {
            "gradients": gradients if accumulates else gradients - 4 * shape.embedding,
            "activations": (0 if setting.checkpointing else sizes.layer) + sizes.backward,
        },
        "embedding": {"gradients": gradients + second, "activations": 2 * states},
        "update": {"gradients": gradients, "optimizer": sizes.pieces, "weights": -copies},
        "export": _export(shape, setting, states, copies),
    }
    if setting.ranks > 1:
        moments["sum"] = {"gradients": gradients + min(2 * BUCKET_BYTES, gradients), "weights": -copies}
    return moments


def sharded_moments(shape: ModelShape, setting: StudentSetting, sizes: StepSizes) -> Moments:
    """The moments of a step of which each rank has a share."""
    share = 1 / setting.ranks
    # A tied embedding is gathered with the rest for the whole of a pass; else it and the head are when they are used.
    outside = 4 * (shape.other if shape.head else shape.embedding + shape.other)
    embedding, head = 4 * shape.embedding, 4 * shape.head
    layer = 4 * max(shape.layer_parameters)
    copies = 0
    if sizes.number < 4:
        layers = max(shape.layer_parameters) if setting.checkpointing else sum(shape.layer_parameters)
        copies = (layers + shape.head_matrix) * sizes.number
    own = int(4 * shape.parameters * share)
    earlier = own if setting.accumulation > 1 else 0
    # A tied head's gradient is whole until the embedding's is added to it.
    until_the_end = 0 if shape.head else embedding
    # The gathered layer, the next one, and the buffers that they are sent through.
    gathered = outside + _GATHERED_LAYERS * layer
    forward = sizes.kept + sizes.ends
    return {
        "gather": {"weights": 2 * max(outside, embedding), "gradients": earlier},
        "gather head": {"weights": outside + 2 * head, "gradients": earlier, "activations": forward},
        "loss": {
            "weights": outside + head + copies,
            "gradients": earlier + max(head, until_the_end),
            "activations": forward,
            "logits": sizes.logits,
        },
        "sum head": {
            "weights": outside,
            "gradients": earlier + int((_SUM_BUFFERS + share) * head),
            "activations": forward,
        },
        "last layer": {
            "weights": gathered + copies,
            "gradients": earlier + int(head * share) + until_the_end + 2 * layer,
            "activations": forward + sizes.backward,
        },
        "first layer": {
            "weights": gathered,
            "gradients": max(earlier, own) + until_the_end + 2 * layer,
            "activations": (0 if setting.checkpointing else sizes.layer) + sizes.backward,
        },
        "sum": {"weights": outside, "gradients": own + _SUM_BUFFERS * max(outside, embedding) + layer},
        "update": {"gradients": own, "optimizer": sizes.pieces},
    }


def adapter_moments(shape: ModelShape, setting: StudentSetting, trained: int, states: int) -> Moments:
    """The moments of a step that trains an adapter, and that of its export."""
    tokens, number = setting.batch * setting.sequence_length, PRECISION_BYTES[setting.precision]
    # Of each adapted layer, [tokens, rank] is kept, and the adapter's own output is added to the layer's.
    products = sum(linear.share for linear in shape.adapted(setting.targets))
    layer = layer_bytes(shape, setting, number) + int(tokens * number * products * setting.rank)
    if not shape.plain_norms:  # the scaled copy is for the gradient of a norm's weight, which is frozen
        layer -= 2 * 4 * tokens * shape.hidden_size
    mask = mask_bytes(shape, setting, number)
    is_again = setting.checkpointing or setting.layer_by_layer
    border = tokens * shape.hidden_size * number
    if setting.layer_by_layer:
        # The inputs of every layer, for all micro-batches of a step; and the gradient of one border for each.
        kept = setting.accumulation * (shape.num_layers * border + mask + border)
    else:
        kept = mask + shape.num_layers * (border if is_again else layer)
    state = 4 * tokens * shape.hidden_size
    if setting.quantization != "none":  # unpacked for a product
        layer += largest_weight(shape) * number
    backward = layer // 2 + (layer if is_again else 0)
    gradients = 4 * trained
    grown = gradients if setting.accumulation > 1 and not setting.layer_by_layer else 0
    pieces = min(_UPDATE_PIECES, 20 * trained) if setting.optimizer == "adamw-8bit" else 0
    left = setting.accumulation * mask if setting.layer_by_layer else 0
    moments = {
        "loss": {
            "gradients": grown,
            "activations": kept + _ENDS * state,
            "logits": setting.device.loss_factor * _LEAN_LOGITS,
        },
        # The loss gives all back but the gradient of its states.
        "last layer": {"gradients": grown, "activations": kept + _ENDS_BEHIND_THE_LOSS * state + backward},
        "first layer": {"gradients": gradients, "activations": left + (0 if is_again else layer) + backward},
        "update": {"gradients": gradients, "optimizer": pieces},
        # The tokenizer is loaded, and peft is imported for the adapter's folder, when the moments are gone.
        "export": {
            "other": _tokenizer_and_peft(shape, keeps_memory=setting.keeps_memory) if setting.device.is_host else 0,
            "optimizer": -states,
        },
    }
    if setting.ranks > 1:
        moments["sum"] = {"gradients": gradients + min(2 * BUCKET_BYTES, gradients)}
    return moments


def largest_weight(shape: ModelShape) -> int:
    """Parameters of the largest matrix in a decoder layer."""
    return max((linear.rows * linear.columns for linear in shape.linears), default=max(shape.layer_parameters) // 3)
