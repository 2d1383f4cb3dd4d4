"""The numbers of a model in a GGUF header: those of its config.json, for each architecture.

The configuration is transformers' own reading of config.json (``read_config(folder).to_dict()``), so that words of
older releases and missing defaults are settled. Settings that llama.cpp does not read from a file are compared with
those that it takes for granted (``src/models/*.cpp`` of https://github.com/ggml-org/llama.cpp); others are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError

if TYPE_CHECKING:
    import gguf

Config = Mapping[str, Any]

_SILU = {"hidden_act": ("silu", "swish")}
# llama.cpp has one GELU, the tanh approximation, for all of these.
_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python")
_NO_BIAS: dict[str, tuple[Any, ...]] = {"attention_bias": (False, None)}
_GEMMA: dict[str, tuple[Any, ...]] = {**_NO_BIAS, "use_bidirectional_attention": (False, None)}
_TIED: dict[str, tuple[Any, ...]] = {"tie_word_embeddings": (True,)}
_FIXED: dict[str, Mapping[str, tuple[Any, ...]]] = {
    "llama": _SILU,
    "mistral": _SILU,
    "qwen2": _SILU,
    "qwen3": {**_SILU, **_NO_BIAS},
    "phi3": _SILU,
    "gemma": {**_GEMMA, **_TIED, "hidden_act": ("gelu_pytorch_tanh", "gelu")},
    "gemma2": {**_GEMMA, **_TIED, "hidden_activation": ("gelu_pytorch_tanh",)},
    "gemma3_text": {**_GEMMA, "hidden_activation": ("gelu_pytorch_tanh",), "attn_logit_softcapping": (None,)},
    "gpt_neox": {"hidden_act": _GELU, "attention_bias": (True,)},
    "gpt2": {
        "activation_function": _GELU,
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
}
"""Settings that llama.cpp takes for granted of each architecture, and the values of config.json that mean the same."""

_WHOLE_HEADS = ("llama", "mistral", "qwen2", "qwen3")  # all of a head is rotated
_HEADS_FILL_THE_WIDTH = ("phi3",)  # query heads together are as wide as the hidden states
_ROPE = {
    **dict.fromkeys(("llama", "mistral"), ("default", "linear", "yarn", "llama3")),
    **dict.fromkeys(("qwen2", "qwen3", "gemma", "gemma2", "gpt_neox"), ("default", "linear", "yarn")),
    "gemma3_text": ("default", "linear"),
    "phi3": ("default", "longrope"),
}
_WINDOW_EVERY = {"gemma2": 2, "gemma3_text": 6}
"""Of so many layers the last has no sliding window, where a file does not say which have."""

# Gemma's largest models scale queries by another number than a head's size; llama.cpp knows them by their layers.
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3_text": 62}


def check(config: Config) -> None:
    """Refuse a model that llama.cpp would compute in another way.

    Raises:
        ModelError: with the setting, its value and what llama.cpp takes for granted.
    """
    kind = str(config["model_type"])
    for name, accepted in _FIXED[kind].items():
        if name in config and config[name] not in accepted:
            raise _refused(kind, f"{name} {config[name]}", f"llama.cpp computes {_words(accepted)} for it")
    if kind == "gpt2":
        return
    share = _rotated_share(config)
    if kind in _WHOLE_HEADS and share != 1.0:
        raise _refused(kind, f"partial_rotary_factor {share:g}", "llama.cpp rotates whole heads of it")
    heads, size = int(config["num_attention_heads"]), head_dim(config)
    if kind in _HEADS_FILL_THE_WIDTH and heads * size != config["hidden_size"]:
        raise _refused(
            kind,
            f"{heads} heads of {size} beside a hidden size of {config['hidden_size']}",
            "llama.cpp reads such a file only where the heads together are as wide as the hidden states",
        )
    for scaled, allowed in _rope_kinds(config):
        if rope_type(scaled) not in allowed:
            raise ModelError(
                f"Rotary positions of the kind {rope_type(scaled)} cannot be written as GGUF for {kind}.",
                f"These can: {', '.join(allowed)}.",
                "Use --format hf, and convert the folder with llama.cpp's own script.",
            )
    if rope_type(rope(config)) == "longrope" and not math.isclose(
        told := float(rope(config).get("attention_factor") or longrope_magnitude(config)), longrope_magnitude(config)
    ):
        raise _refused(kind, f"an attention_factor of {told:g}", "the lengths of its context say another one")
    if kind == "gemma2" and not (config["attn_logit_softcapping"] and config["final_logit_softcapping"]):
        raise _refused(kind, "no softcapping", "llama.cpp caps the logits of each")


def exact_tokens(config: Config) -> int | None:
    """Length of text beyond which llama.cpp attends to more tokens than the model; None where it never does.

    Its Llama, Qwen and Phi-3 have no sliding windows.
    """
    window = config.get("sliding_window")
    if config["model_type"] in _WINDOW_EVERY or not window:
        return None
    if "use_sliding_window" in config and not config["use_sliding_window"]:
        return None
    kinds = config.get("layer_types")
    if kinds and "sliding_attention" not in kinds:
        return None
    return int(window) if window < config["max_position_embeddings"] else None


def has_unusual_windows(config: Config) -> bool:
    """Whether a Gemma's layers slide in another order than its architecture has by itself, as those of a cut student.

    The file says so (``sliding_window_pattern``). Not every program reads that key for Gemma: llama.cpp of May 2026
    computes the usual order, or ends where a Gemma 3 has no layer without a window.
    """
    kind = str(config["model_type"])
    if kind not in _WINDOW_EVERY:
        return False
    slides = [name == "sliding_attention" for name in config["layer_types"]]
    usual = windows(kind, len(slides))
    return any(slides) and (slides != usual or (kind == "gemma3_text" and all(slides)))


def trained_length(config: Config) -> int:
    """Length of text up to which a model with two sets of rotary factors (LongRoPE) uses the short ones."""
    told = rope(config).get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return int(told or config["max_position_embeddings"])


def short_context(config: Config) -> int | None:
    """Size of a context up to which llama.cpp uses the short factors of LongRoPE; None without such factors.

    transformers chooses by the length of the text, llama.cpp by the size of the context, whatever is in it.
    """
    return trained_length(config) if rope_type(rope(config)) == "longrope" else None


def longrope_magnitude(config: Config) -> float:
    """LongRoPE's factor on the rotated numbers (transformers' ``_compute_longrope_parameters``)."""
    trained = trained_length(config)
    factor = config["max_position_embeddings"] / trained
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))


def has_other_width(config: Config) -> bool:
    """Whether the query heads together are narrower or wider than the hidden states."""
    return int(config["num_attention_heads"]) * head_dim(config) != int(config["hidden_size"])


def _words(accepted: tuple[Any, ...]) -> str:
    return " or ".join(str(value) for value in accepted if value is not None or len(accepted) == 1)


def _refused(kind: str, what: str, why: str) -> ModelError:
    return ModelError(
        f"A model of type {kind} with {what} cannot be written as GGUF.",
        f"{why[0].upper()}{why[1:]}.",
        "Use --format hf.",
    )


def rope(config: Config) -> Mapping[str, Any]:
    """Rotary settings, whatever version of transformers wrote them; Gemma 3's those of its layers without a window."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found["full_attention"] if isinstance(found.get("full_attention"), Mapping) else found


def rope_type(settings: Mapping[str, Any]) -> str:
    """The name of a way to scale rotary positions."""
    return str(settings.get("rope_type") or settings.get("type") or "default")


def rope_theta(config: Config, default: float = 10_000.0) -> float:
    """The base of rotary frequencies."""
    return float(rope(config).get("rope_theta") or config.get("rope_theta") or default)


def head_dim(config: Config) -> int:
    """Numbers of a query head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def query_scale(config: Config) -> float:
    """Factor on Gemma's queries, by which llama.cpp's scale becomes the model's.

    llama.cpp divides by the root of a head's size, whatever config.json says; its largest models by that of the width.
    """
    scalar = config.get("query_pre_attn_scalar")
    return 1.0 if scalar is None else math.sqrt(divided_by(config) / float(scalar))


def divided_by(config: Config) -> int:
    """The number by whose root llama.cpp divides a Gemma's queries."""
    if config["num_hidden_layers"] == _SCALED_BY_WIDTH.get(str(config["model_type"])):
        return int(config["hidden_size"]) // int(config["num_attention_heads"])
    return head_dim(config)


def windows(model_type: str, layers: int, told: Any = None) -> list[bool]:
    """For each layer of a Gemma, whether it has a sliding window.

    Args:
        model_type: gemma2 or gemma3_text.
        layers: their number.
        told: what a file says: each layer's, or of how many layers the last has none; None where it says nothing.
    """
    if isinstance(told, list) and len(told) == layers:
        return [bool(slides) for slides in told]
    every = told if type(told) is int and told >= 0 else _WINDOW_EVERY[model_type]
    return [not every or number % every < every - 1 for number in range(layers)]


def _rotated_share(config: Config) -> float:
    return float(rope(config).get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)


def _rope_kinds(config: Config) -> list[tuple[Mapping[str, Any], tuple[str, ...]]]:
    """Each of a model's rotary settings, with the kinds of scaling that llama.cpp has for it."""
    found = [(rope(config), _ROPE[str(config["model_type"])])]
    local = (config.get("rope_parameters") or {}).get("sliding_attention")
    return [*found, (local, ("default",))] if isinstance(local, Mapping) else found


def _describe_decoder(writer: gguf.GGUFWriter, config: Config) -> None:
    heads = int(config["num_attention_heads"])
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))


def _describe_rope(writer: gguf.GGUFWriter, config: Config) -> None:
    settings = rope(config)
    writer.add_rope_freq_base(rope_theta(config))
    writer.add_rope_dimension_count(int(_rotated_share(config) * head_dim(config)))
    kind = rope_type(settings)
    if kind == "linear":
        writer.add_rope_scaling_type(_scaling("LINEAR"))
        writer.add_rope_scaling_factor(float(settings["factor"]))
    elif kind == "yarn":
        _describe_yarn(writer, config)


def _describe_yarn(writer: gguf.GGUFWriter, config: Config) -> None:
    """YaRN (Peng et al. 2023, https://arxiv.org/abs/2309.00071), as transformers' ``_compute_yarn_parameters``."""
    settings = rope(config)
    betas = (float(settings.get("beta_fast") or 32), float(settings.get("beta_slow") or 1))
    if betas != (32.0, 1.0) or settings.get("truncate") is False:
        raise _refused(
            str(config["model_type"]),
            f"YaRN of beta_fast {betas[0]:g}, beta_slow {betas[1]:g}, truncate {settings.get('truncate', True)}",
            "llama.cpp computes 32, 1 and True",
        )
    factor = float(settings["factor"])
    trained = settings.get("original_max_position_embeddings") or config["max_position_embeddings"]
    writer.add_rope_scaling_type(_scaling("YARN"))
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(int(trained))
    ours, theirs = _yarn_attention(settings, factor), yarn_magnitude(factor)
    if not math.isclose(ours, theirs):  # llama.cpp multiplies its own by what the file says
        writer.add_rope_scaling_attn_factors(ours / theirs)


def _yarn_attention(settings: Mapping[str, Any], factor: float) -> float:
    """YaRN's factor on the rotated numbers."""
    given, mscale, of_all = (settings.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return float(given)
    if mscale and of_all:
        return yarn_magnitude(factor, float(mscale)) / yarn_magnitude(factor, float(of_all))
    return yarn_magnitude(factor)


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's factor on the rotated numbers, where config.json gives none."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _scaling(name: str) -> Any:
    import gguf

    return gguf.RopeScalingType[name]


def describe_llama(writer: gguf.GGUFWriter, config: Config) -> None:
    """Llama's numbers, and those of the many that are built like it."""
    _describe_decoder(writer, config)
    _describe_rope(writer, config)
    writer.add_vocab_size(int(config["vocab_size"]))


def describe_gemma2(writer: gguf.GGUFWriter, config: Config) -> None:
    """Gemma 2's numbers."""
    describe_llama(writer, config)
    writer.add_attn_logit_softcapping(float(config["attn_logit_softcapping"]))
    writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
    _describe_windows(writer, config)


def describe_gemma3(writer: gguf.GGUFWriter, config: Config) -> None:
    """Gemma 3's numbers."""
    describe_llama(writer, config)
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    writer.add_rope_freq_base_swa(float(local.get("rope_theta") or 10_000.0))
    _describe_windows(writer, config)


def _describe_windows(writer: gguf.GGUFWriter, config: Config) -> None:
    """Which layers slide, and how far: a student of some of a teacher's layers has another order than the teacher.

    llama.cpp ends where no layer of a model with windows slides. A Gemma 3 can be without windows; in a Gemma 2, a
    window as long as the context is none.
    """
    kind, window = str(config["model_type"]), config.get("sliding_window")
    slides = [name == "sliding_attention" for name in config["layer_types"]]
    if not any(slides):
        if kind == "gemma3_text":
            return
        slides, window = [True] * len(slides), config["max_position_embeddings"]
    writer.add_sliding_window(int(window or 0))
    if slides != windows(kind, len(slides)):
        writer.add_sliding_window_pattern(slides)


def describe_phi3(writer: gguf.GGUFWriter, config: Config) -> None:
    """Phi-3's numbers."""
    describe_llama(writer, config)
    if rope_type(rope(config)) == "longrope":
        writer.add_rope_scaling_orig_ctx_len(trained_length(config))
        writer.add_rope_scaling_attn_factors(longrope_magnitude(config))
    writer.add_sliding_window(int(config.get("sliding_window") or 0))


def describe_gpt_neox(writer: gguf.GGUFWriter, config: Config) -> None:
    """GPT-NeoX' numbers."""
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(int(config["num_attention_heads"]))
    writer.add_parallel_residual(bool(config.get("use_parallel_residual", True)))
    writer.add_layer_norm_eps(float(config.get("layer_norm_eps", 1e-5)))
    _describe_rope(writer, config)


def describe_gpt2(writer: gguf.GGUFWriter, config: Config) -> None:
    """GPT-2's numbers."""
    writer.add_context_length(int(config["n_positions"]))
    writer.add_embedding_length(int(config["n_embd"]))
    writer.add_block_count(int(config["n_layer"]))
    writer.add_feed_forward_length(int(config.get("n_inner") or 4 * config["n_embd"]))
    writer.add_head_count(int(config["n_head"]))
    writer.add_layer_norm_eps(float(config["layer_norm_epsilon"]))
