"""Mixtures of experts in GGUF files: Mixtral, Qwen 2 MoE and Qwen 3 MoE. They are read, and not written.

A file holds all experts of a layer as one tensor, [experts, out, in]; older files of Mixtral hold each alone. Here each
expert is a tensor of its own, as in the safetensors of these models, so that one is dequantised at a time. The router's
arithmetic follows llama.cpp (``src/llama-graph.cpp``, ``build_moe_ffn``): a softmax over all experts, whose chosen ones
sum to 1 again in Mixtral and Qwen 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from engine.errors import ModelError
from engine.model_files.gguf.architectures import (
    ARCHITECTURES,
    Architecture,
    Facts,
    as_it_is,
    decoder_tensors,
    llama_pairs,
    read_decoder,
    read_rope,
)
from engine.model_files.gguf.header import StoredTensor

_TOGETHER = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight")
_ALONE = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)\.(\d+)\.weight")
_OF_QWEN = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_OF_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_SHARED = ("gate_proj", "up_proj", "down_proj")
SHARED_GATE = "shared_expert_gate.weight"
"""[1, hidden] in transformers, and [hidden] in GGUF."""


def model_type_of_mixture(name: str, metadata: Mapping[str, Any]) -> str | None:
    """The ``model_type`` of a mixture by its architecture's name in GGUF; None where the file is none, or unknown."""
    if name == "llama":
        return "mixtral" if metadata.get("llama.expert_count") else None
    return next((model_type for model_type, each in MIXTURES.items() if each.name == name), None)


def experts_of(model_type: str, name: str, stored: StoredTensor) -> Iterator[tuple[str, StoredTensor]]:
    """Each expert of a GGUF tensor under transformers' name; nothing where the tensor holds no experts.

    Raises:
        ModelError: the tensor is not [experts, out, in].
    """
    if model_type not in MIXTURES:
        return
    prefix = "block_sparse_moe.experts" if model_type == "mixtral" else "mlp.experts"
    parts = _OF_MIXTRAL if model_type == "mixtral" else _OF_QWEN
    if match := _ALONE.fullmatch(name):
        yield f"model.layers.{match[1]}.{prefix}.{match[3]}.{parts[match[2]]}.weight", stored
    elif match := _TOGETHER.fullmatch(name):
        if len(stored.shape) != 3:
            raise ModelError(
                f"The tensor {name} in {stored.file} has the shape {stored.shape}, not experts, rows and columns.",
                "The header is damaged.",
                "Download the file again.",
            )
        each = stored.nbytes // stored.shape[0]
        for number in range(stored.shape[0]):
            part = replace(stored, shape=stored.shape[1:], offset=stored.offset + number * each, nbytes=each)
            yield f"model.layers.{match[1]}.{prefix}.{number}.{parts[match[2]]}.weight", part


def _read_mixtral(facts: Facts) -> dict[str, Any]:
    return {
        **read_decoder(facts),
        **read_rope(facts),
        "num_local_experts": facts.count("expert_count"),
        "num_experts_per_tok": facts.count("expert_used_count"),
        "sliding_window": None,
    }


def _read_qwen_moe(facts: Facts) -> dict[str, Any]:
    used = facts.count("expert_used_count")
    config = read_decoder(facts)
    size = facts.count("expert_feed_forward_length", max(1, config["intermediate_size"] // used))
    found = {
        **config,
        **read_rope(facts),
        "num_experts": facts.count("expert_count"),
        "num_experts_per_tok": used,
        "moe_intermediate_size": size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": facts.name == "qwen3moe",
    }
    if facts.name == "qwen2moe":
        shared = facts.count("expert_shared_feed_forward_length", config["intermediate_size"])
        found["shared_expert_intermediate_size"] = shared
    return found


def _not_written(writer: Any, config: Mapping[str, Any]) -> None:
    raise AssertionError("mixtures are only read")


_SHARED_OF_QWEN2 = (*(f"mlp.shared_expert.{name}" for name in _SHARED), "mlp.shared_expert_gate")
_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
MIXTURES: dict[str, Architecture] = {
    "mixtral": Architecture(
        *("llama", _not_written, llama_pairs, _read_mixtral),
        decoder_tensors(*_ATTENTION, "block_sparse_moe.gate", dense=False),
    ),
    "qwen2_moe": Architecture(
        *("qwen2moe", _not_written, as_it_is, _read_qwen_moe),
        decoder_tensors(*_ATTENTION, "mlp.gate", *_SHARED_OF_QWEN2, dense=False),
    ),
    "qwen3_moe": Architecture(
        *("qwen3moe", _not_written, as_it_is, _read_qwen_moe),
        decoder_tensors(*_ATTENTION, *_NORMS, "mlp.gate", dense=False),
    ),
}
READABLE: dict[str, Architecture] = {**ARCHITECTURES, **MIXTURES}
"""Architectures that are read from GGUF files, by transformers' ``model_type``."""
