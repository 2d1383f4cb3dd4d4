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


_SPECIAL_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

NEWER: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": (
        "qwen3_next",
        {
            **_LLAMA_LIKE,
            **_MOE,
            "head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 32,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
        },
    ),  # linear attention, three layers of four
    "qwen2_moe": ("qwen2_moe", {**_LLAMA_LIKE, **_MOE, "shared_expert_intermediate_size": 32}),
    "granitemoe": ("granitemoe", {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **_LLAMA_LIKE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "layer_types": ["mamba", "attention", "mamba", "attention"],
        },
    ),  # state space and attention layers
    "glm": ("glm", {**_LLAMA_LIKE, "head_dim": 8, **_SPECIAL_IDS}),
    "glm4": ("glm4", {**_LLAMA_LIKE, "head_dim": 8, **_SPECIAL_IDS}),
    "glm4_moe": (
        "glm4_moe",
        {
            **_LLAMA_LIKE,
            "head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            **_SPECIAL_IDS,
        },
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {
            **_LLAMA_LIKE,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **_LLAMA_LIKE,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
        },
    ),  # a buffer in the file that chooses experts
    "cohere2": ("cohere2", {**_LLAMA_LIKE, "sliding_window": WINDOW, "logit_scale": 0.25, **_SPECIAL_IDS}),
    "gemma": ("gemma", {**_LLAMA_LIKE, "head_dim": 8}),
    "gemma3n": (
        "gemma3n_text",
        {
            **_LLAMA_LIKE,
            "head_dim": 8,
            "sliding_window": WINDOW,
            "vocab_size_per_layer_input": 320,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "num_kv_shared_layers": 0,
            "altup_num_inputs": 2,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "activation_sparsity_pattern": [0.0, 0.0, 0.0, 0.0],
            "intermediate_size": [64, 64, 64, 64],
        },
    ),  # embeddings of each layer, several streams
    "nemotron": ("nemotron", {**_LLAMA_LIKE}),
    "exaone4": ("exaone4", {**_LLAMA_LIKE, "sliding_window": WINDOW, "sliding_window_pattern": 2}),
    "lfm2": (
        "lfm2",
        {
            **_LLAMA_LIKE,
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": 3,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        },
    ),  # short convolutions
    "lfm2_moe": (
        "lfm2_moe",
        {
            **_LLAMA_LIKE,
            **_MOE,
            "conv_L_cache": 3,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        },
    ),
    "falcon_h1": (
        "falcon_h1",
        {
            **_LLAMA_LIKE,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_d_conv": 4,
            "head_dim": 8,
        },
    ),  # both kinds in each layer
    "bamba": (
        "bamba",
        {
            **_LLAMA_LIKE,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "attn_layer_indices": [1, 3],
        },
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            **_LLAMA_LIKE,
            "num_hidden_layers": 6,
            "attention_window_size": WINDOW,
            "lru_width": 32,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
    ),  # a recurrence, and windows
    "jamba": (
        "jamba",
        {
            **_LLAMA_LIKE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "use_mamba_kernels": False,
            "mamba_dt_rank": 4,
        },
    ),
    "rwkv": (
        "rwkv",
        {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "attention_hidden_size": 32,
            "intermediate_size": 64,
            "context_length": 128,
        },
    ),  # no attention, no positions
    "mamba2": (
        "mamba2",
        {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "zamba2": (
        "zamba2",
        {
            **_LLAMA_LIKE,
            "num_hidden_layers": 6,
            "layer_types": ["mamba", "mamba", "hybrid", "mamba", "hybrid", "mamba"],
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "hybrid_layer_ids": [2, 4],
            "num_mem_blocks": 1,
            "adapter_rank": 4,
            "attention_head_dim": 16,
            "attention_hidden_size": 64,
        },
    ),  # one block that several layers share
    "olmo3": ("olmo3", {**_LLAMA_LIKE, "sliding_window": WINDOW}),
    "olmoe": ("olmoe", {**_LLAMA_LIKE, "num_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": ("phimoe", {**_LLAMA_LIKE, "num_local_experts": 4}),
    "dbrx": (
        "dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 4,
            "max_seq_len": 128,
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        },
    ),
    "ernie4_5": ("ernie4_5", {**_LLAMA_LIKE, "head_dim": 8}),
    "hunyuan": ("hunyuan_v1_dense", {**_LLAMA_LIKE, "head_dim": 8}),
    "helium": ("helium", {**_LLAMA_LIKE, "head_dim": 8}),
    "seed_oss": ("seed_oss", {**_LLAMA_LIKE, "head_dim": 8}),
    "minimax": (
        "minimax",
        {
            **_LLAMA_LIKE,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
            "block_size": 8,
        },
    ),  # lightning attention
    "ministral": (
        "ministral",
        {
            **_LLAMA_LIKE,
            "sliding_window": WINDOW,
            "head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "apertus": ("apertus", {**_LLAMA_LIKE}),
    "vaultgemma": ("vaultgemma", {**_LLAMA_LIKE, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "bitnet": ("bitnet", {**_LLAMA_LIKE}),
    "diffllama": ("diffllama", {**_LLAMA_LIKE}),
    "nemotron_h": (
        "nemotron_h",
        {
            **_LLAMA_LIKE,
            "hybrid_override_pattern": "M*-M",
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "head_dim": 8,
        },
    ),
    "minimax_m2": ("minimax_m2", {**_LLAMA_LIKE, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "xlstm": ("xlstm", {"hidden_size": 32, "num_hidden_layers": 4, "num_blocks": 4, "num_heads": 4}),  # matrix memories
    "jetmoe": ("jetmoe", {**_LLAMA_LIKE, "kv_channels": 8, "num_local_experts": 4}),
    "afmoe": ("afmoe", {**_LLAMA_LIKE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "qwen3_5": (
        "qwen3_5_text",
        {
            **_LLAMA_LIKE,
            "head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "flex_olmo": ("flex_olmo", {**_LLAMA_LIKE, **_SPECIAL_IDS, "num_experts": 4, "num_experts_per_tok": 2}),
    "dots1": (
        "dots1",
        {
            **_LLAMA_LIKE,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "head_dim": 8,
            "n_shared_experts": 1,
        },
    ),
    "doge": ("doge", {**_LLAMA_LIKE}),
    "llama4": (
        "llama4_text",
        {**_LLAMA_LIKE, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 64},
    ),
}
"""Further decoders of transformers 5: nothing in the engine knows one of them."""


@functools.cache
def tiny_architecture(name: str, *, dtype: str = "float32", shard_bytes: int | None = None, **changes: Any) -> Path:
    """The folder of a tiny model, made once a session.

    Args:
        name: one of ARCHITECTURES or NEWER.
        dtype: of the files.
        shard_bytes: largest safetensors file; several and an index when the model is larger.
        changes: to the configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings = (ARCHITECTURES | NEWER)[name]
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
