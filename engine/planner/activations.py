"""Bytes of activations: one decoder layer without gradients, with what its backward pass needs, and all layers.

Legend: as in :mod:`engine.planner.footprint`.
"""

from __future__ import annotations

from engine.planner.phase_settings import StudentSetting, TeacherSetting
from engine.planner.shape import ModelShape

# Models whose attention has a cap on its scores, or a bias that the fused kernel does not take, build the whole
# [B, heads, T, T] matrix.
_FULL_ATTENTION = frozenset({"gemma2", "bloom", "mpt", "falcon", "gpt_oss"})
# Models whose layers see a window and the whole row by turns.
_WINDOWS = frozenset({"gemma2", "gemma3", "gemma3_text", "gpt_oss", "cohere2", "exaone4", "olmo3", "ministral"})
# Attention and MLP read the same input, so that one copy of it is kept.
_PARALLEL = frozenset({"gpt_neox", "gptj", "phi", "cohere", "cohere2"})
# Activations that are written as several operations keep what each of them read.
_LONG_ACTIVATION = frozenset({"gpt2", "gpt_neo", "gptj", "gemma", "gemma2", "gemma3", "gemma3_text"})


def _attention_scores(shape: ModelShape, batch: int, length: int, number: int, is_unfused: bool) -> int:
    is_full = shape.model_type in _FULL_ATTENTION or is_unfused
    return batch * shape.num_heads * length * length * number if is_full else 0


def is_unfused(shape: ModelShape, setting: TeacherSetting | StudentSetting) -> bool:
    """Whether torch's attention builds the whole matrix of scores on a GPU.

    Its fused kernels take grouped queries in half precision alone, and NVIDIA's before capability 8.0, which are the
    ones that fp16 is planned for, have none for them in fp16 either.
    Source: https://github.com/pytorch/pytorch/pull/181528, https://github.com/huggingface/transformers/issues/48633
    """
    return not setting.device.is_host and shape.num_kv_heads < shape.num_heads and setting.precision != "bf16"


def forward_bytes(shape: ModelShape, batch: int, length: int, number: int, is_unfused: bool) -> int:
    """One layer's temporaries without gradients: the widest moment is in attention or in the MLP."""
    tokens = batch * length
    hidden, inner = shape.hidden_size, shape.intermediate_size
    attention = 2 * hidden + 2 * shape.attention_width
    mlp = 3 * hidden + (3 if shape.mlp_matrices > 2 else 2) * inner
    return int(tokens * number * max(attention, mlp)) + 2 * _attention_scores(shape, batch, length, number, is_unfused)


def layer_bytes(shape: ModelShape, setting: StudentSetting, number: int) -> int:
    """Return the activations of one decoder layer that its backward pass needs."""
    tokens = setting.batch * setting.sequence_length
    hidden, inner = shape.hidden_size, shape.intermediate_size
    heads_width = shape.num_heads * shape.head_dim
    is_parallel = shape.model_type in _PARALLEL
    # Norms read the float32 stream; root-mean-square norms keep a scaled copy beside it; their output is what the
    # products read.
    norms = (1 if is_parallel else 2) * 4 * hidden + 2 * number * hidden
    norms += 0 if shape.plain_norms else 2 * 4 * hidden
    # Query, key and value; where they are views of one matrix, the rotated query and key are further copies.
    attention = number * shape.attention_width
    if shape.fused_attention and shape.model_type != "gpt2":
        attention += number * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    attention += 2 * number * heads_width  # the output, and the same in the order that the next product reads
    gated = shape.mlp_matrices > 2
    inner_copies = 4 if gated else 2
    if shape.model_type in _LONG_ACTIVATION:
        inner_copies += 3
    scores = 3 * _attention_scores(shape, setting.batch, setting.sequence_length, number, is_unfused(shape, setting))
    return tokens * (norms + attention + number * inner_copies * inner) + scores


def mask_bytes(shape: ModelShape, setting: StudentSetting, number: int) -> int:
    """The mask between documents, as numbers to add, which all layers share; nothing where rows hold one document.

    A model with windows has a second one for these layers.
    """
    masks = 2 if shape.model_type in _WINDOWS else 1
    return masks * setting.batch * setting.sequence_length**2 * number if setting.packing else 0


def kept_bytes(shape: ModelShape, setting: StudentSetting, number: int) -> int:
    """Return the activations of all layers that are stored for the backward pass."""
    if setting.checkpointing:
        return shape.num_layers * setting.batch * setting.sequence_length * shape.hidden_size * 4
    return shape.num_layers * layer_bytes(shape, setting, number)
