"""Settings for tiny models of the causal architectures that tests/engine/models/architectures.py does not have.

A row is a kind that needs something of its own: layers below an encoder, several streams behind the positions, layers
that use what another one leaves, constants from a layer's number, names that peft changes, infinities in config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine.models.architectures import NEWER, VOCAB_SIZE, WINDOW
from tests.tiny import scratch, tiny_tokenizer

IDS: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_BERT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "is_decoder": True,
}
_BART: dict[str, Any] = {
    "d_model": 32,
    "decoder_layers": 4,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "max_position_embeddings": 128,
    "is_decoder": True,
    "is_encoder_decoder": False,
}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
}
# So many heads that no two positions have the same score: equal ones are chosen by the length of the row.
_INDEXED: dict[str, Any] = {"index_topk": 6, "index_head_dim": 16, "index_n_heads": 16}
_SPARSE = ["dense", "sparse", "sparse", "sparse"]
_BY_TURNS = ["sliding_attention", "full_attention"] * 2
_STATE: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "attn_layer_indices": [1, 3],
}
_GEMMA: dict[str, Any] = {
    **_LLAMA,
    "sliding_window": WINDOW,
    "layer_types": _BY_TURNS,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "hidden_size_per_layer_input": 8,
}

EVERY: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _BERT),  # embeds in one module, and has its layers in another
    "roberta": ("roberta", _BERT),  # positions begin behind the padding's id
    "rembert": ("rembert", {**_BERT, "input_embedding_size": 16, "output_embedding_size": 32}),  # a head called decoder
    "bert_generation": ("bert-generation", _BERT),  # a class with a name of its own
    "xmod": ("xmod", {**_BERT, "default_language": "en_XX"}),
    "electra": ("electra", {**_BERT, "embedding_size": 16}),  # an embedding and a head narrower than the layers
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            **{key: value for key, value in _LLAMA.items() if key != "num_hidden_layers"},
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "attention_window_size": WINDOW,
            "lru_width": 32,
        },
    ),  # a cap on the logits by a name of its own
    "bart": ("bart", _BART),  # a decoder whose settings count an encoder too
    "pegasus": ("pegasus", _BART),
    "xglm": ("xglm", {"d_model": 32, "ffn_dim": 64, "num_layers": 4, "attention_heads": 4}),
    "openai_gpt": ("openai-gpt", {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}),  # layers return lists
    "ctrl": ("ctrl", {"n_embd": 32, "n_layer": 4, "n_head": 4, "dff": 64, "n_positions": 128}),  # layers of no class
    "bamba": ("bamba", {**_LLAMA, **_STATE}),  # an infinity in config.json
    "mamba2": NEWER["mamba2"],
    "rwkv": (
        "rwkv",
        {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "attention_hidden_size": 32,
            "intermediate_size": 64,
            "context_length": 128,
            "rescale_every": 2,
        },
    ),  # halves its weights in evaluation
    "falcon": ("falcon", {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "alibi": False}),
    "beam": (
        "beam",
        {
            **_LLAMA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "sliding_window": WINDOW,
            "layer_types": _BY_TURNS,
            "mlp_layer_types": _SPARSE,
            "n_group": 1,
            "topk_group": 1,
        },
    ),  # a whole number that follows from a layer's number
    "deepseek_v3": ("deepseek_v3", {**_LLAMA, **_LATENT, **_EXPERTS, "first_k_dense_replace": 1}),
    "deepseek_v4": (
        "deepseek_v4",
        {
            **_LLAMA,
            **_INDEXED,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "q_lora_rank": 16,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "hc_mult": 2,
            "o_groups": 2,
            "o_lora_rank": 8,
            "num_nextn_predict_layers": 0,
            "sliding_window": WINDOW,
            "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"] * 2,
            "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
        },
    ),  # several streams behind the positions
    "glm_moe_dsa": (
        "glm_moe_dsa",
        {
            **_LLAMA,
            **_LATENT,
            **_EXPERTS,
            **_INDEXED,
            "mlp_layer_types": _SPARSE,
            "first_k_dense_replace": 1,
            "layer_types": ["indexed_attention"] * 4,
            "indexer_types": ["full", "shared", "full", "shared"],
        },
    ),  # a layer attends where another one chose
    "gemma3n": (
        "gemma3n_text",
        {
            **_GEMMA,
            "laurel_rank": 4,
            "num_kv_shared_layers": 2,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "intermediate_size": [64] * 4,
        },
    ),  # the last layers use keys and values of earlier ones
    "gemma4": ("gemma4_text", {**_GEMMA, "global_head_dim": 16}),  # embeddings of each layer, settings of single layers
    "inkling2": (
        "inkling2_text",
        {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "sliding_window_size": WINDOW,
            "d_rel": 4,
            "rel_extent": 16,
            "layer_types": ["hybrid_sliding", "hybrid"] * 2,
            "max_position_embeddings": 128,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "unpadded_vocab_size": VOCAB_SIZE,
            "n_layers_per_attn_res_block": 2,
        },
    ),  # files that keep a part of each layer in another list
    "llama4": (
        "llama4_text",
        {
            **_LLAMA,
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "layer_types": ["chunked_attention", "chunked_attention", "chunked_attention", "full_attention"],
            "attention_chunk_size": WINDOW,
            "no_rope_layers": [1, 1, 1, 0],
        },
    ),  # moves the ids to where the embedding's matrix is
    "git": ("git", {key: value for key, value in _BERT.items() if key != "is_decoder"}),  # a tower for pictures
}

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "hrm": ("hrm_text", {**_LLAMA, "num_layers_per_stack": 2, "num_hidden_layers": 16}),
    "dory": (
        "dory",
        {
            **_LLAMA,
            "num_hidden_layers": 6,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "n_input_layers": 2,
            "n_recurrent_layers": 2,
            "n_output_layers": 2,
        },
    ),
}
"""Models that use their layers several times in a pass: teachers in memory, and nothing else."""


def tiny_model_of(name: str, **changes: Any) -> Path:
    """The folder of a tiny model with the tokenizer of all tiny models; made once a session."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = scratch() / f"every-{name}-{'-'.join(f'{key}={value}' for key, value in sorted(changes.items()))}"
    if (folder / "config.json").is_file():
        return folder
    model_type, settings = (EVERY | LOOPS)[name]
    config = AutoConfig.for_model(model_type, **{"vocab_size": VOCAB_SIZE, **IDS, **settings, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(name))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
