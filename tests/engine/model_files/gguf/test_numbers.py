"""Settings that differ from an architecture's usual ones are in the file, and come back from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.export import write_gguf
from engine.model_files.gguf.numbers import exact_tokens
from engine.model_files.hub import resolve_model
from engine.models.load import load_causal_lm
from tests.engine.export.test_gguf_file import _SHARED
from tests.engine.model_files.gguf.exact_models import save_exact
from tests.tiny import VOCAB_SIZE

_FULL, _SLIDING = "full_attention", "sliding_attention"
_GEMMA3 = {"sliding_window": 16, "query_pre_attn_scalar": 8}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "attention_factor": 0.7,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 4.0, 7.0, 9.0],
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2, cut: windows only": (
        "gemma2",
        {"layer_types": [_SLIDING] * 3, "sliding_window": 16, "query_pre_attn_scalar": 8},
    ),
    "gemma2, cut: all tokens first": (
        "gemma2",
        {"layer_types": [_FULL, _FULL, _SLIDING], "sliding_window": 16, "query_pre_attn_scalar": 8},
    ),
    "gemma2, cut: all tokens": (
        "gemma2",
        {"layer_types": [_FULL] * 3, "sliding_window": 16, "query_pre_attn_scalar": 8},
    ),
    "gemma2, another scale": ("gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 20}),
    "gemma3, cut": ("gemma3_text", {"layer_types": [_SLIDING, _FULL, _SLIDING], **_GEMMA3}),
    "gemma3, cut: all tokens": ("gemma3_text", {"layer_types": [_FULL] * 3, **_GEMMA3}),
    "gemma3, another scale": ("gemma3_text", {"sliding_window": 16, "query_pre_attn_scalar": 20}),
    "gemma3, other bases": (
        "gemma3_text",
        {
            "layer_types": [_SLIDING, _FULL, _SLIDING],
            **_GEMMA3,
            "rope_parameters": {
                _FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
                _SLIDING: {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "gemma3, capped": ("gemma3_text", {"final_logit_softcapping": 2.0, **_GEMMA3}),
    "llama, yarn with another factor": ("llama", {"rope_parameters": _YARN}),
    "gpt_neox, another base": (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 30.0, "partial_rotary_factor": 0.5}},
    ),
    "gpt_neox, linear": (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
    ),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "qwen2, heads of another width": ("qwen2", {"head_dim": 16, "num_key_value_heads": 2}),
    "phi3, two sets of factors, a short text": (
        "phi3",
        {"rope_parameters": {**_LONG, "original_max_position_embeddings": 64}},
    ),
    "phi3, two sets of factors, a long text": (
        "phi3",
        {"rope_parameters": {**_LONG, "original_max_position_embeddings": 16}},
    ),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
}
IDS = torch.randint(2, VOCAB_SIZE, (1, 40), generator=torch.Generator().manual_seed(1))


def folder_of(kind: str, settings: dict[str, Any], folder: Path) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**_SHARED, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return save_exact(model, folder)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_causal_lm(folder, dtype=torch.float32)(IDS).logits.float()


@pytest.mark.parametrize("case", CASES)
def test_a_model_with_other_settings_comes_back(case: str, tmp_path: Path) -> None:
    folder = folder_of(*CASES[case], tmp_path / "model")
    write_gguf(folder, tmp_path / "out.gguf")
    wanted = logits(folder)
    assert (logits(resolve_model(tmp_path / "out.gguf")) - wanted).abs().max() < 0.01 * wanted.std()


@pytest.mark.parametrize(
    ("kind", "settings", "tokens"),
    [
        ("mistral", {"sliding_window": 16}, 16),
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {"sliding_window": 4096}, None),
        ("phi3", {"sliding_window": 16}, 16),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, 16),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3}, None),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 16}, None),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, 16),
        ("gemma2", {"sliding_window": 16}, None),
        ("llama", {}, None),
        ("gpt2", {}, None),
    ],
)
def test_a_window_that_llama_cpp_does_not_have_is_known(
    kind: str, settings: dict[str, Any], tokens: int | None
) -> None:
    config = AutoConfig.for_model(kind, **{**({} if kind == "gpt2" else _SHARED), **settings})
    assert exact_tokens(config.to_dict()) == tokens
