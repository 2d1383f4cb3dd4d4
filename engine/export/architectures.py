"""How each architecture is written as GGUF: its name, its numbers, and what becomes of its tensors.

llama.cpp reads some tensors in another order or shape than transformers keeps them. The rules follow llama.cpp's own
converter, ``convert_hf_to_gguf.py`` (https://github.com/ggml-org/llama.cpp); names of tensors come from the ``gguf``
package. Nothing here reads or writes a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError

if TYPE_CHECKING:
    import gguf

Config = Mapping[str, Any]
Array = NDArray[Any]
Change = Callable[[Config, str, Array], Array]


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: in GGUF.
        describe: writes its numbers into the file's header.
        change: makes of a tensor (its name in transformers, its values) what llama.cpp reads.
        needs_head: llama.cpp asks for an output matrix also where it is the embedding.
    """

    name: str
    describe: Callable[[gguf.GGUFWriter, Config], None]
    change: Change
    needs_head: bool = False


def architecture_of(config: Config) -> Architecture:
    """The architecture of a model by its config.json.

    Raises:
        ModelError: it cannot be written as GGUF.
    """
    found = ARCHITECTURES.get(str(config.get("model_type")))
    if found is None:
        raise ModelError(
            f"A model of type {config.get('model_type')} cannot be written as GGUF.",
            f"These can: {', '.join(sorted(ARCHITECTURES))}.",
            "Use --format hf, and convert the folder with llama.cpp's own script.",
        )
    return found


def extra_tensors(config: Config) -> Iterator[tuple[str, Array]]:
    """Tensors that no checkpoint holds: the factors of Llama 3's rotary scaling, [head_dim / 2] float32.

    Source: transformers, ``_compute_llama3_parameters``.
    """
    rope = _rope(config)
    if _rope_type(rope) != "llama3":
        return
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = float(rope["original_max_position_embeddings"])
    size = _head_dim(config)
    frequencies = 1.0 / _rope_theta(config) ** (np.arange(0, size, 2, dtype=np.float64) / size)
    factors = []
    for wave in 2 * math.pi / frequencies:
        if wave < trained / high:
            factors.append(1.0)
        elif wave > trained / low:
            factors.append(factor)
        else:
            smooth = (trained / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    yield "rope_freqs.weight", np.array(factors, dtype=np.float32)


def _rope(config: Config) -> Mapping[str, Any]:
    """Rotary settings, whatever version of transformers wrote them."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _rope_type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _rope_theta(config: Config, default: float = 10_000.0) -> float:
    return float(_rope(config).get("rope_theta") or config.get("rope_theta") or default)


def _head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _describe_decoder(writer: gguf.GGUFWriter, config: Config) -> None:
    heads = int(config["num_attention_heads"])
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))


def _describe_rope(writer: gguf.GGUFWriter, config: Config) -> None:
    rope = _rope(config)
    share = float(rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    writer.add_rope_freq_base(_rope_theta(config))
    writer.add_rope_dimension_count(int(share * _head_dim(config)))
    kind = _rope_type(rope)
    if kind == "linear":
        writer.add_rope_scaling_type(_scaling("LINEAR"))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(_scaling("YARN"))
        writer.add_rope_scaling_factor(float(rope["factor"]))
        trained = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(int(trained))
    elif kind not in ("default", "llama3"):
        raise ModelError(
            f"Rotary positions of the kind {kind} cannot be written as GGUF.",
            "default, linear, yarn and llama3 can.",
            "Use --format hf, and convert the folder with llama.cpp's own script.",
        )


def _scaling(name: str) -> Any:
    import gguf

    return gguf.RopeScalingType[name]


def _describe_llama(writer: gguf.GGUFWriter, config: Config) -> None:
    _describe_decoder(writer, config)
    _describe_rope(writer, config)
    writer.add_vocab_size(int(config["vocab_size"]))


def _check_scale(config: Config) -> None:
    """llama.cpp scales Gemma's queries by the head's size, whatever config.json says."""
    scalar = config.get("query_pre_attn_scalar")
    if scalar is not None and int(scalar) != _head_dim(config):
        raise ModelError(
            f"A Gemma with query_pre_attn_scalar {scalar} and heads of {_head_dim(config)} cannot be written as GGUF.",
            "llama.cpp takes the head's size as the scale.",
            "Use --format hf.",
        )


def _describe_gemma2(writer: gguf.GGUFWriter, config: Config) -> None:
    _check_scale(config)
    _describe_llama(writer, config)
    writer.add_attn_logit_softcapping(float(config["attn_logit_softcapping"]))
    writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
    writer.add_sliding_window(int(config["sliding_window"]))


def _describe_gemma3(writer: gguf.GGUFWriter, config: Config) -> None:
    _check_scale(config)
    _describe_decoder(writer, config)
    rope = _rope(config)
    full = rope.get("full_attention") if isinstance(rope.get("full_attention"), Mapping) else None
    theta = (full or rope).get("rope_theta") or config.get("rope_theta") or 1_000_000.0
    writer.add_rope_freq_base(float(theta))
    scaled = full or rope
    if _rope_type(scaled) == "linear":
        writer.add_rope_scaling_type(_scaling("LINEAR"))
        writer.add_rope_scaling_factor(float(scaled["factor"]))
    writer.add_sliding_window(int(config["sliding_window"]))
    writer.add_vocab_size(int(config["vocab_size"]))


def _describe_phi3(writer: gguf.GGUFWriter, config: Config) -> None:
    _describe_llama(writer, config)
    writer.add_sliding_window(int(config.get("sliding_window") or 0))


def _describe_gpt_neox(writer: gguf.GGUFWriter, config: Config) -> None:
    rope = _rope(config)
    share = float(rope.get("partial_rotary_factor") or config.get("rotary_pct") or 0.25)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_rope_dimension_count(int(share * _head_dim(config)))
    writer.add_head_count(int(config["num_attention_heads"]))
    writer.add_parallel_residual(bool(config.get("use_parallel_residual", True)))
    writer.add_layer_norm_eps(float(config.get("layer_norm_eps", 1e-5)))


def _describe_gpt2(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(int(config["n_positions"]))
    writer.add_embedding_length(int(config["n_embd"]))
    writer.add_block_count(int(config["n_layer"]))
    writer.add_feed_forward_length(int(config.get("n_inner") or 4 * config["n_embd"]))
    writer.add_head_count(int(config["n_head"]))
    writer.add_layer_norm_eps(float(config["layer_norm_epsilon"]))


def _as_it_is(config: Config, name: str, values: Array) -> Array:
    return values


def _llama_pairs(config: Config, name: str, values: Array) -> Array:
    """Queries and keys: llama.cpp rotates neighbouring pairs, transformers halves of a head."""
    heads = int(config["num_attention_heads"])
    if ".k_proj." in name:
        heads = int(config.get("num_key_value_heads") or heads)
    elif ".q_proj." not in name:
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _gemma_norms(config: Config, name: str, values: Array) -> Array:
    """Gemma's norms multiply by 1 + weight, llama.cpp's by the weight."""
    return values + 1 if name.endswith("norm.weight") else values


def _gpt_neox_parts(config: Config, name: str, values: Array) -> Array:
    """Query, key and value lie head by head in transformers, and one behind the other in llama.cpp."""
    if ".query_key_value." not in name:
        return values
    heads = int(config["num_attention_heads"])
    each = values.reshape(heads, 3, values.shape[0] // heads // 3, *values.shape[1:])
    return each.swapaxes(0, 1).reshape(values.shape)


_GPT2_TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def _gpt2_turned(config: Config, name: str, values: Array) -> Array:
    """GPT-2 keeps its matrices as [in, out]."""
    return values.T if name.endswith(_GPT2_TURNED) else values


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", _describe_llama, _llama_pairs),
    "mistral": Architecture("llama", _describe_llama, _llama_pairs),
    "qwen2": Architecture("qwen2", _describe_llama, _as_it_is),
    "qwen3": Architecture("qwen3", _describe_llama, _as_it_is),
    "gemma2": Architecture("gemma2", _describe_gemma2, _gemma_norms),
    "gemma3_text": Architecture("gemma3", _describe_gemma3, _gemma_norms),
    "phi3": Architecture("phi3", _describe_phi3, _as_it_is),
    "gpt_neox": Architecture("gptneox", _describe_gpt_neox, _gpt_neox_parts, needs_head=True),
    "gpt2": Architecture("gpt2", _describe_gpt2, _gpt2_turned),
}
