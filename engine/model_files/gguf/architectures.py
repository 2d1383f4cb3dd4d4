"""Representation of each architecture in GGUF: name, tensors, and the configuration that a header means.

llama.cpp reads some tensors in another order or shape than transformers keeps them. The rules follow llama.cpp's own
converter, ``convert_hf_to_gguf.py`` (https://github.com/ggml-org/llama.cpp); names of tensors come from the ``gguf``
package, and :mod:`engine.model_files.gguf.numbers` writes the header. Nothing here reads or writes a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.model_files.gguf.numbers import (
    Config,
    describe_gemma2,
    describe_gemma3,
    describe_gpt2,
    describe_gpt_neox,
    describe_llama,
    describe_phi3,
    divided_by,
    has_other_width,
    head_dim,
    query_scale,
    rope,
    rope_theta,
    rope_type,
    windows,
    yarn_magnitude,
)

if TYPE_CHECKING:
    import gguf

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Layout:
    """Storage of a transformers tensor in llama.cpp.

    Attributes:
        order: for each row of the file, the row of transformers' tensor; None where they are the same.
        shift: what the file's numbers have more than transformers'.
        scale: by what they are multiplied then.
        turned: rows are columns.
    """

    order: NDArray[np.int64] | None = None
    shift: float = 0.0
    scale: float = 1.0
    turned: bool = False

    @property
    def is_same(self) -> bool:
        """Whether both sides keep the tensor alike."""
        return self.order is None and not self.shift and self.scale == 1.0 and not self.turned

    def stored(self, values: Array) -> Array:
        """Return the entries of the file."""
        if self.order is not None:
            values = values[self.order]
        if self.turned:
            values = values.T
        values = values + values.dtype.type(self.shift) if self.shift else values
        return values * values.dtype.type(self.scale) if self.scale != 1.0 else values

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
    # llama.cpp's Qwen 2 has heads as wide as the hidden states together; its Llama computes the same, of any width.
    return ARCHITECTURES["llama"] if config["model_type"] == "qwen2" and has_other_width(config) else found


def model_type_of(name: str) -> str | None:
    """The ``model_type`` of transformers for a dense architecture's name in GGUF; None where it is not known."""
    return next((model_type for model_type, each in ARCHITECTURES.items() if each.name == name), None)


def extra_tensors(config: Config) -> Iterator[tuple[str, Array]]:
    """Tensors that no checkpoint holds: factors of Llama 3's rotary scaling or of LongRoPE, [rotated / 2] float32.

    Source: transformers, ``_compute_llama3_parameters`` and ``_compute_longrope_parameters``.
    """
    settings = rope(config)
    if rope_type(settings) == "longrope":
        for name in ("long", "short"):
            yield f"rope_factors_{name}.weight", np.array(settings[f"{name}_factor"], dtype=np.float32)
    if rope_type(settings) != "llama3":
        return
    factor, low, high = (float(settings[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = float(settings["original_max_position_embeddings"])
    size = head_dim(config)
    frequencies = 1.0 / rope_theta(config) ** (np.arange(0, size, 2, dtype=np.float64) / size)
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
        told = {**config, "rope_parameters": {**scaling, "rope_theta": rope_theta(config)}}
        (_, made) = next(iter(extra_tensors(told)))
        if made.shape == factors.shape and np.allclose(made, factors, rtol=1e-4):
            return scaling
    raise ModelError(
        f"The rotary factors in {where} are none of Llama 3's.",
        "The numbers of config.json that they were computed from are unknown.",
        "Use the safetensors version of the model.",
    )


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
    """Gemma's norms multiply by 1 + weight, llama.cpp's by the weight.

    The scale of attention that llama.cpp does not have goes where queries are made: into their norm, or else their
    projection.
    """
    shift = 1.0 if name.endswith("norm.weight") else 0.0
    makes_queries = ".q_norm." if config["model_type"] == "gemma3_text" else ".q_proj."
    return Layout(shift=shift, scale=query_scale(config) if makes_queries in name else 1.0)


def _gpt_neox_parts(config: Config, name: str, rows: int) -> Layout:
    """Query, key and value are ordered by head in transformers, and one behind the other in llama.cpp."""
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
        share = facts.number("rope.scaling.attn_factor", 1.0)
        return {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": float(factor),
                "original_max_position_embeddings": trained,
                **({} if share == 1.0 else {"attention_factor": share * yarn_magnitude(float(factor))}),
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


def _read_gemma(facts: Facts, model_type: str, usual_window: int) -> dict[str, Any]:
    config = read_decoder(facts)
    pattern = facts.metadata.get(f"{facts.name}.attention.sliding_window_pattern")
    slides = windows(model_type, config["num_hidden_layers"], pattern)
    window = usual_window
    if facts.get("attention.sliding_window"):
        window = facts.count("attention.sliding_window")
    elif model_type == "gemma3_text":  # llama.cpp then computes no layer of it with a window
        slides = [False] * len(slides)
    found = {
        **config,
        "query_pre_attn_scalar": divided_by({**config, "model_type": model_type}),
        "sliding_window": window,
    }
    if slides == windows(model_type, len(slides)):  # transformers' order, too
        return found
    return {**found, "layer_types": ["sliding_attention" if each else "full_attention" for each in slides]}


def _read_gemma1(facts: Facts) -> dict[str, Any]:
    return {**read_decoder(facts), "hidden_activation": "gelu_pytorch_tanh"}


def _read_gemma2(facts: Facts) -> dict[str, Any]:
    return {
        **_read_gemma(facts, "gemma2", 4096),
        "attn_logit_softcapping": facts.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": facts.number("final_logit_softcapping", 30.0),
    }


def _read_gemma3(facts: Facts) -> dict[str, Any]:
    capped = facts.number("final_logit_softcapping", 0.0)
    return {
        **_read_gemma(facts, "gemma3_text", 1024),
        **read_rope(facts),
        "rope_theta": facts.number("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": facts.number("rope.freq_base_swa", 10_000.0),
        "sliding_window_pattern": 6,
        **({"final_logit_softcapping": capped} if capped else {}),
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
        **read_rope(facts),
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
    "llama": Architecture("llama", describe_llama, llama_pairs, _read_llama, _LLAMA_TENSORS),
    "mistral": Architecture("llama", describe_llama, llama_pairs, _read_llama, _LLAMA_TENSORS),
    "qwen2": Architecture("qwen2", describe_llama, as_it_is, _read_qwen, _LLAMA_TENSORS),
    "qwen3": Architecture("qwen3", describe_llama, as_it_is, _read_qwen, decoder_tensors(*_APART, *_HEAD_NORMS)),
    "gemma": Architecture("gemma", describe_llama, _gemma_norms, _read_gemma1, _LLAMA_TENSORS),
    "gemma2": Architecture(
        "gemma2", describe_gemma2, _gemma_norms, _read_gemma2, decoder_tensors(*_APART, *_GEMMA_NORMS)
    ),
    "gemma3_text": Architecture(
        *("gemma3", describe_gemma3, _gemma_norms, _read_gemma3),
        decoder_tensors(*_APART, *_HEAD_NORMS, *_GEMMA_NORMS),
    ),
    "phi3": Architecture(
        "phi3", describe_phi3, as_it_is, _read_phi3, decoder_tensors("self_attn.qkv_proj", "mlp.gate_up_proj")
    ),
    "gpt_neox": Architecture(
        "gptneox", describe_gpt_neox, _gpt_neox_parts, _read_gpt_neox, _GPT_NEOX_TENSORS, needs_head=True
    ),
    "gpt2": Architecture("gpt2", describe_gpt2, _gpt2_turned, _read_gpt2, _GPT2_TENSORS),
}
