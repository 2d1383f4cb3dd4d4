"""Tiny random models of many architectures as model folders: what streaming has to get right without knowing them.

Each has something that a hand-written streamer would need code for: see the notes beside the names.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tests.tiny import scratch

VOCAB_SIZE = 320
WINDOW = 8  # of sliding attention: shorter than the rows the tests use

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GPT2_LIKE: dict[str, Any] = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("gpt_neox", {**_LLAMA_LIKE, "use_parallel_residual": True}),  # its head is called embed_out
    "llama": ("llama", {**_LLAMA_LIKE, "tie_word_embeddings": False}),
    "llama_tied": ("llama", {**_LLAMA_LIKE, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", _LLAMA_LIKE),  # biases on q, k, v
    "qwen3": ("qwen3", {**_LLAMA_LIKE, "head_dim": 8}),  # norms on q and k
    "gemma2": (
        "gemma2",
        {**_LLAMA_LIKE, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8,
         "final_logit_softcapping": 3.0},
    ),  # scaled embedding, alternating windows, softcaps
    "gemma3": (
        "gemma3_text",
        {**_LLAMA_LIKE, "num_hidden_layers": 7, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    ),  # five windows to one full layer, two rotary bases
    "mistral": ("mistral", {**_LLAMA_LIKE, "sliding_window": WINDOW}),
    "phi": ("phi", _LLAMA_LIKE),  # partial rotary, head with bias
    "phi3": ("phi3", {**_LLAMA_LIKE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),  # fused q, k, v
    "opt": (
        "opt",
        {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
         "max_position_embeddings": 128, "word_embed_proj_dim": 16},
    ),  # learned positions with an offset, projections around the layers
    "gpt2": ("gpt2", _GPT2_LIKE),  # Conv1D
    "gptj": ("gptj", {**_GPT2_LIKE, "rotary_dim": 4}),  # tables as buffers, tuples between layers
    "gpt_neo": (
        "gpt_neo",
        {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 128, "window_size": WINDOW,
         "attention_types": [[["global", "local"], 2]]},
    ),
    "falcon": ("falcon", {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "alibi": False}),
    "falcon_alibi": ("falcon", {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "alibi": True}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 4, "n_head": 4}),  # alibi, norm after the embedding
    "mpt": ("mpt", {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 128}),
    "olmo2": ("olmo2", _LLAMA_LIKE),
    "stablelm": ("stablelm", _LLAMA_LIKE),
    "starcoder2": ("starcoder2", _LLAMA_LIKE),
    "mixtral": ("mixtral", {**_LLAMA_LIKE, "num_local_experts": 4}),  # saved expert by expert
    "qwen3_moe": ("qwen3_moe", {**_LLAMA_LIKE, **_MOE, "head_dim": 8, "mlp_only_layers": [1]}),  # one dense layer
    "gpt_oss": (
        "gpt_oss",
        {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": WINDOW},
    ),  # attention sinks
    "cohere": ("cohere", {**_LLAMA_LIKE, "logit_scale": 0.25}),
    "granite": (
        "granite",
        {**_LLAMA_LIKE, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    ),
    "smollm3": ("smollm3", {**_LLAMA_LIKE, "pad_token_id": 0, "no_rope_layer_interval": 2}),  # layers without positions
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 4, "state_size": 4}),  # no attention at all
}  # fmt: skip


@functools.cache
def tiny_architecture(name: str, *, dtype: str = "float32", shard_bytes: int | None = None, **changes: Any) -> Path:
    """The folder of a tiny model, made once a session.

    Args:
        name: one of ARCHITECTURES.
        dtype: of the files.
        shard_bytes: largest safetensors file; several and an index when the model is larger.
        changes: to the configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings = ARCHITECTURES[name]
    config = AutoConfig.for_model(model_type, **{"vocab_size": VOCAB_SIZE, **settings, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(name))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                # Norms and biases start as exact ones and zeros, and small weights make every layer a no-op: both would
                # hide a mistake.
                parameter.add_(0.1 * torch.randn(parameter.shape))
    label = "-".join(f"{key}={value}" for key, value in sorted(changes.items())).replace("/", "_")
    folder = scratch() / f"architecture-{name}-{dtype}-{shard_bytes}-{label}"
    shards = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
    model.to(getattr(torch, dtype)).save_pretrained(folder, **shards)
    return folder
