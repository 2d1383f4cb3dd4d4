"""The text model inside a model for pictures or sounds: its configuration, and its tensors by the names it has alone.

A wrapper's ``text_config`` describes the text model. With text alone the wrapper computes what its text model computes,
so that the other towers are left where they are. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.model_files.headers import TensorInfo

# Text models that transformers has no causal model for, and the family that computes the same with text alone: their
# rotary positions have three axes, which are equal where there is no picture.
_SAME_AS = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
_CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# Around text a picture would change how these see it, or their text model sees the words on both sides.
_NOT_ALONE = ("mllama", "paligemma", "pi0", "t5gemma2", "florence2", "diffusion_gemma", "gemma3n")
_INHERITED = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config", "dtype", "torch_dtype")
_TEXT = re.compile(r"(?:model\.)?(?:language_model|text_model)\.(?:model\.)?(.+)")
_HEAD = re.compile(r"(?:model\.)?(?:language_model\.)?lm_head\.(.+)")
_OTHERS = re.compile(
    r"(?:model\.)?(?:vision\w*|visual|image\w*|audio\w*|embed_(?:vision|audio)|multi_modal_projector|mm_projector|"
    r"vit\w*|connector|aligner|video\w*|speech\w*)\."
)


def text_config(config: Mapping[str, Any], causal_types: frozenset[str] | None) -> dict[str, Any] | None:
    """The configuration of the text model of a wrapper; None where the model is no wrapper, or it cannot stand alone.

    Args:
        config: of the model's config.json.
        causal_types: every ``model_type`` that transformers has a causal language model for, where that is known.
    """
    text = config.get("text_config")
    model_type = str(config.get("model_type"))
    told = config.get("architectures")
    architectures = [str(name) for name in told] if isinstance(told, list) else []
    if not isinstance(text, dict) or config.get("is_encoder_decoder") or model_type in _NOT_ALONE:
        return None
    if any("CausalLM" in name for name in architectures):
        return None
    found = dict(text)
    kind = str(found.get("model_type") or _default_type(model_type))
    kind = _SAME_AS.get(kind, kind)
    if causal_types is not None and kind not in causal_types:
        return None
    found["model_type"] = kind
    found["architectures"] = [_CLASSES[kind]] if kind in _CLASSES else []
    for name in _INHERITED:
        if config.get(name) is not None and found.get(name) is None:
            found[name] = config[name]
    if "tie_word_embeddings" not in found and isinstance(config.get("tie_word_embeddings"), bool):
        found["tie_word_embeddings"] = config["tie_word_embeddings"]
    return _plain_positions(found) if kind in _SAME_AS.values() else found


def text_tensors(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The text model's tensors of a wrapper, by the names that the text model has alone."""
    found = {}
    for name, tensor in tensors.items():
        if match := _HEAD.fullmatch(name):
            found[f"lm_head.{match[1]}"] = tensor
        elif match := _TEXT.fullmatch(name):
            found[f"model.{match[1]}"] = tensor
        elif not _OTHERS.match(name):
            found[name] = tensor
    return found


def _default_type(model_type: str) -> str:
    """Defaults of transformers for values that a text_config omits."""
    return {"gemma3": "gemma3_text", "mistral3": "mistral", "llava": "llama", "qwen3_vl": "qwen3_vl_text"}.get(
        model_type, "llama"
    )


def _plain_positions(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions of one axis."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key)
        if isinstance(rope, dict):
            kept = {name: value for name, value in rope.items() if not name.startswith("mrope")}
            if kept.get("rope_type", kept.get("type")) in ("mrope", "default"):
                kept = {name: value for name, value in kept.items() if name not in ("type", "rope_type")}
                kept |= {"rope_type": "default"} if key == "rope_parameters" else {}
            config[key] = kept or None
    config["architectures"] = [_CLASSES[config["model_type"]]]
    return config
