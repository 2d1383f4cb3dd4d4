"""Representation of each architecture in GGUF: name, hyperparameters and tensors, in both directions.

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


@dataclass(frozen=True, eq=False)
class Layout:
    """Storage of a transformers tensor in llama.cpp.

    Attributes:
        order: for each row of the file, the row of transformers' tensor; None where they are the same.
        shift: what the file's numbers have more than transformers'.
        turned: rows are columns.
    """

    order: NDArray[np.int64] | None = None
    shift: float = 0.0
    turned: bool = False

    def stored(self, values: Array) -> Array:
        """Return the entries of the file."""
        if self.order is not None:
            values = values[self.order]
        if self.turned:
            values = values.T
        return values + values.dtype.type(self.shift) if self.shift else values

    def places(self) -> NDArray[np.int64]:
        """For each row of transformers' tensor, the row of the file."""
        assert self.order is not None, "asked only where rows are moved"
        return np.argsort(self.order)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The other side's shape."""
        return tuple(reversed(shape)) if self.turned else shape


LayoutOf = Callable[[Config, str, int], Layout]
"""Of a config.json, a tensor's name in transformers, and its rows there."""


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: in GGUF.
        describe: writes its numbers into the file's header.
        layout: how llama.cpp keeps each tensor.
        read: makes a config.json of a header's numbers, without what all architectures share; see ``Facts``.
        tensors: names in transformers without ``.weight`` or ``.bias``; ``{}`` stands for a layer's number.
        needs_head: llama.cpp asks for an output matrix also where it is the embedding.
    """

    name: str
    describe: Callable[[gguf.GGUFWriter, Config], None]
    layout: LayoutOf
    read: Callable[[Facts], dict[str, Any]]
    tensors: tuple[str, ...]
    needs_head: bool = False


class Facts:
    """A header's numbers as an architecture asks for them.

    Args:
        name: the architecture's, with which its keys begin.
        metadata: of the header.
        tensors: names in the file.
        where: the file, for messages.
    """

    def __init__(self, name: str, metadata: Mapping[str, Any], tensors: frozenset[str], where: str) -> None:
        self.name, self.metadata, self.tensors, self.where = name, metadata, tensors, where

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of this architecture; one for each layer counts where all are the same.

        Raises:
            ModelError: layers differ.
        """
        value = self.metadata.get(f"{self.name}.{key}", default)
        if isinstance(value, list) and value and key != "rope.dimension_sections":
            if any(each != value[0] for each in value):
                raise ModelError(
                    f"The layers of {self.where} differ in {key}.",
                    f"transformers' {self.name} has layers that are all alike.",
                    "Use the safetensors version of the model.",
                )
            return value[0]
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0.

        Raises:
            ModelError: it is missing, or something else.
        """
        value = self.get(key, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise ModelError(
                f"{self.where} says {self.name}.{key} = {value!r:.60}.",
                "It must be a whole number above 0.",
                "Download the file again.",
            )
        return value

    def number(self, key: str, default: float) -> float:
        """A number.

        Raises:
            ModelError: it is something else.
        """
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ModelError(
                f"{self.where} says {self.name}.{key} = {value!r:.60}.",
                "It must be a number.",
                "Download the file again.",
            )
        return value


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


def model_type_of(name: str) -> str | None:
    """The ``model_type`` of transformers for a dense architecture's name in GGUF; None where it is not known."""
    return next((model_type for model_type, each in ARCHITECTURES.items() if each.name == name), None)


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


def llama3_scaling(factors: Array, config: Config, where: str) -> dict[str, Any]:
    """Llama 3's rotary scaling as config.json has it, from the factors of a GGUF file: :func:`extra_tensors` undone.

    Files do not say which numbers made the factors. Those of the released models are tried, and others with which a
    model may have been trained; what they give is compared with the file.

    Raises:
        ModelError: no numbers give these factors.
    """
    largest = float(np.max(factors))
    trained = [8192, *(2**power for power in range(4, 21) if power != 13)]
    tried = [(1.0, 4.0, length) for length in trained] + [(1.0, 8.0, length) for length in trained]
    for low, high, length in tried:
        scaling = {
            "rope_type": "llama3",
            "factor": largest,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": length,
        }
        told = {**config, "rope_parameters": {**scaling, "rope_theta": _rope_theta(config)}}
        (_, made) = next(iter(extra_tensors(told)))
        if made.shape == factors.shape and np.allclose(made, factors, rtol=1e-4):
            return scaling
    raise ModelError(
        f"The rotary factors in {where} are none of Llama 3's.",
        "Which numbers of config.json made them is not known.",
        "Use the safetensors version of the model.",
    )


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


def as_it_is(config: Config, name: str, rows: int) -> Layout:
    """Both keep a tensor alike."""
    return Layout()


def llama_pairs(config: Config, name: str, rows: int) -> Layout:
    """Queries and keys: llama.cpp rotates neighbouring pairs, transformers halves of a head."""
    heads = int(config["num_attention_heads"])
    if ".k_proj." in name:
        heads = int(config.get("num_key_value_heads") or heads)
    elif ".q_proj." not in name:
        return Layout()
    return Layout(np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows))


def _gemma_norms(config: Config, name: str, rows: int) -> Layout:
    """Gemma's norms multiply by 1 + weight, llama.cpp's by the weight."""
    return Layout(shift=1.0) if name.endswith("norm.weight") else Layout()


def _gpt_neox_parts(config: Config, name: str, rows: int) -> Layout:
    """Query, key and value lie head by head in transformers, and one behind the other in llama.cpp."""
    if ".query_key_value." not in name:
        return Layout()
    heads = int(config["num_attention_heads"])
    return Layout(np.arange(rows).reshape(heads, 3, rows // heads // 3).swapaxes(0, 1).reshape(rows))


_GPT2_TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def _gpt2_turned(config: Config, name: str, rows: int) -> Layout:
    """GPT-2 keeps its matrices as [in, out]."""
    return Layout(turned=name.endswith(_GPT2_TURNED))


def read_decoder(facts: Facts) -> dict[str, Any]:
    """The numbers that all decoders have."""
    heads, hidden = facts.count("attention.head_count"), facts.count("embedding_length")
    return {
        "hidden_size": hidden,
        "num_hidden_layers": facts.count("block_count"),
        "intermediate_size": facts.count("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.count("attention.head_count_kv", heads),
        "head_dim": facts.count("attention.key_length", max(1, hidden // heads)),
        "max_position_embeddings": facts.count("context_length"),
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": facts.number("rope.freq_base", 10_000.0),
    }


def read_rope(facts: Facts) -> dict[str, Any]:
    """Scaled rotary positions in the words of transformers 4, which 5 reads too."""
    kind = str(facts.get("rope.scaling.type", "none"))
    factor = facts.number("rope.scaling.factor", 0.0) or 1 / (facts.number("rope.scale_linear", 1.0) or 1.0)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": float(factor)}}
    if kind == "yarn":
        trained = facts.count("rope.scaling.original_context_length", facts.count("context_length"))
        return {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": float(factor),
                "original_max_position_embeddings": trained,
            }
        }
    raise ModelError(
        f"{facts.where} has rotary positions of the kind {kind}, which cannot be read.",
        "none, linear, yarn and Llama 3's factors can.",
        "Use the safetensors version of the model.",
    )


def _read_llama(facts: Facts) -> dict[str, Any]:
    return {
        **read_decoder(facts),
        **read_rope(facts),
        "attention_bias": "blk.0.attn_q.bias" in facts.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in facts.tensors,
    }


def _read_qwen(facts: Facts) -> dict[str, Any]:
    return {**read_decoder(facts), **read_rope(facts)}


# Gemma's largest models scale queries by another number than a head's size; llama.cpp knows them by their layers, too.
_GEMMA_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}


def _read_gemma(facts: Facts) -> dict[str, Any]:
    config = read_decoder(facts)
    scaled = config["num_hidden_layers"] == _GEMMA_SCALED_BY_WIDTH.get(facts.name)
    scale = config["hidden_size"] // config["num_attention_heads"] if scaled else config["head_dim"]
    return {**config, "query_pre_attn_scalar": scale}


def _read_gemma1(facts: Facts) -> dict[str, Any]:
    return {**read_decoder(facts), "hidden_activation": "gelu_pytorch_tanh"}


def _read_gemma2(facts: Facts) -> dict[str, Any]:
    return {
        **_read_gemma(facts),
        "sliding_window": facts.count("attention.sliding_window", 4096),
        "attn_logit_softcapping": facts.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": facts.number("final_logit_softcapping", 30.0),
    }


def _read_gemma3(facts: Facts) -> dict[str, Any]:
    return {
        **_read_gemma(facts),
        **read_rope(facts),
        "rope_theta": facts.number("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": facts.number("rope.freq_base_swa", 10_000.0),
        "sliding_window": facts.count("attention.sliding_window", 1024),
        "sliding_window_pattern": 6,
    }


def _read_phi3(facts: Facts) -> dict[str, Any]:
    config = read_decoder(facts)
    share = facts.count("rope.dimension_count", config["head_dim"]) / config["head_dim"]
    window = facts.get("attention.sliding_window", 0)
    return {
        **config,
        **read_rope(facts),
        "partial_rotary_factor": share,
        "sliding_window": window or None,
        "original_max_position_embeddings": facts.count(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        ),
    }


def _read_gpt_neox(facts: Facts) -> dict[str, Any]:
    heads, hidden = facts.count("attention.head_count"), facts.count("embedding_length")
    size = max(1, hidden // heads)
    return {
        "hidden_size": hidden,
        "num_hidden_layers": facts.count("block_count"),
        "intermediate_size": facts.count("feed_forward_length"),
        "num_attention_heads": heads,
        "max_position_embeddings": facts.count("context_length"),
        "rotary_pct": facts.count("rope.dimension_count", size) / size,
        "rotary_emb_base": facts.number("rope.freq_base", 10_000.0),
        "layer_norm_eps": facts.number("attention.layer_norm_epsilon", 1e-5),
        "use_parallel_residual": bool(facts.get("use_parallel_residual", True)),
    }


def _read_gpt2(facts: Facts) -> dict[str, Any]:
    return {
        "n_positions": facts.count("context_length"),
        "n_embd": facts.count("embedding_length"),
        "n_layer": facts.count("block_count"),
        "n_inner": facts.count("feed_forward_length"),
        "n_head": facts.count("attention.head_count"),
        "layer_norm_epsilon": facts.number("attention.layer_norm_epsilon", 1e-5),
    }


def decoder_tensors(*of_layer: str, dense: bool = True) -> tuple[str, ...]:
    """Names of a decoder as most families have them; without a dense layer's MLP, those of a mixture of experts."""
    shared = ("input_layernorm", "post_attention_layernorm", "self_attn.o_proj", *(("mlp.down_proj",) if dense else ()))
    outside = ("model.embed_tokens", "model.norm", "lm_head")
    return (*outside, *(f"model.layers.{{}}.{name}" for name in (*shared, *of_layer)))


_APART = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_GEMMA_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
_LLAMA_TENSORS = decoder_tensors(*_APART)
_OF_GPT_NEOX = ("input_layernorm", "post_attention_layernorm", "attention.query_key_value", "attention.dense")
_GPT_NEOX_TENSORS = (
    *("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"),
    *(f"gpt_neox.layers.{{}}.{name}" for name in (*_OF_GPT_NEOX, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")),
)
_OF_GPT2 = ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
_GPT2_TENSORS = (
    *("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"),
    *(f"transformer.h.{{}}.{name}" for name in _OF_GPT2),
)

# Of several with the same name in GGUF, the first is what a file is read as: a Mistral is a Llama there.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", _describe_llama, llama_pairs, _read_llama, _LLAMA_TENSORS),
    "mistral": Architecture("llama", _describe_llama, llama_pairs, _read_llama, _LLAMA_TENSORS),
    "qwen2": Architecture("qwen2", _describe_llama, as_it_is, _read_qwen, _LLAMA_TENSORS),
    "qwen3": Architecture("qwen3", _describe_llama, as_it_is, _read_qwen, decoder_tensors(*_APART, *_HEAD_NORMS)),
    "gemma": Architecture("gemma", _describe_llama, _gemma_norms, _read_gemma1, _LLAMA_TENSORS),
    "gemma2": Architecture(
        "gemma2", _describe_gemma2, _gemma_norms, _read_gemma2, decoder_tensors(*_APART, *_GEMMA_NORMS)
    ),
    "gemma3_text": Architecture(
        *("gemma3", _describe_gemma3, _gemma_norms, _read_gemma3),
        decoder_tensors(*_APART, *_HEAD_NORMS, *_GEMMA_NORMS),
    ),
    "phi3": Architecture(
        "phi3", _describe_phi3, as_it_is, _read_phi3, decoder_tensors("self_attn.qkv_proj", "mlp.gate_up_proj")
    ),
    "gpt_neox": Architecture(
        "gptneox", _describe_gpt_neox, _gpt_neox_parts, _read_gpt_neox, _GPT_NEOX_TENSORS, needs_head=True
    ),
    "gpt2": Architecture("gpt2", _describe_gpt2, _gpt2_turned, _read_gpt2, _GPT2_TENSORS),
}
