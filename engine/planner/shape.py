"""Sizes of a model for the formulas, without its location."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.model_files.adapter_shape import ends_with, is_slim
from engine.model_files.headers import FLOAT_BYTES
from engine.model_files.spec import ModelSpec
from engine.model_files.weight_files import is_decoded

# The matrix of query, key and value together, and the bias of a norm, under the names that they have in checkpoints.
_FUSED = re.compile(r"(query_key_value|qkv_proj|Wqkv|c_attn)\.weight$")
_NORM_BIAS = re.compile(r"(norm\w*|ln_\d+|ln_f)\.bias$")
PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


CARRIES_A_STATE = frozenset(
    {
        *("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma", "jamba", "zamba", "zamba2", "bamba"),
        *("falcon_h1", "granitemoehybrid", "nemotron_h", "lfm2", "lfm2_moe", "minimax", "qwen3_next", "qwen3_5"),
        *("qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "kimi_linear", "olmo_hybrid", "bailing_hybrid"),
        *("lara_mini", "lfm3", "zaya", "inkling_text", "inkling2_text", "inkling2_loop_text", "deepseek_v4"),
    }
)
"""Types of models with recurrent layers or convolutions. The test of :mod:`engine.models.packed` measures them."""
# Factors on the logits and caps of them, in the words of those families that have some.
_HEAD_MORE = (
    *("final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier"),
    "logits_mup_width_multiplier",
)
# Weights of a head that is more than one matrix: BERT's and its kin's, Dory's scale.
_PART_OF_HEAD = re.compile(
    r"(?:^|\.)(?:lm_head|predictions|generator_predictions)\.(?:transform|dense|norm|LayerNorm|layer_norm|logit_scale)\b"
)
_EXPERT = re.compile(r"\.experts\.\d+\.")
_NORM = re.compile(r"norm\w*\.weight$")  # Cohere's have a row for each head


@dataclass(frozen=True)
class LinearShape:
    """A linear layer of the decoder layers.

    Attributes:
        name: its path in a decoder layer, as in ``self_attn.q_proj``.
        rows, columns: outputs and inputs; GPT-2 stores them the other way round, which changes no figure here.
        share: of the decoder layers that have it.
    """

    name: str
    rows: int
    columns: int
    share: float = 1.0


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a causal language model. Counts are of parameters.

    Attributes:
        layer_parameters: of each decoder layer.
        head: 0 where the head is the embedding.
        stored_bytes: bytes of one parameter in the files.
        stored_precision: the files' number format as ``--precision`` names it; empty where it has no such name, or
            weights are dequantised.
        max_positions: longest sequence; None without a limit.
        fused_attention: whether query, key and value come out of one matrix.
        plain_norms: whether norms have a bias (LayerNorm), and are not root-mean-square norms.
        has_plain_head: whether config.json and the files say of nothing that the head does beside its matrix product.
        is_quantized: whether the files hold most of the layers in fewer than 16 bits.
        linears: linear layers of the decoder layers; experts, which transformers fuses into one block, are none.
        layers_prefix: path of the decoder layers in the files, as in ``model.layers``.
        tokenizer_bytes: size of ``tokenizer.json``; 0 where there is none.
    """

    name: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    layer_parameters: tuple[int, ...]
    embedding: int
    head: int
    other: int
    stored_bytes: int
    max_positions: int | None
    model_type: str
    stored_precision: str = "fp32"
    fused_attention: bool = False
    plain_norms: bool = False
    has_plain_head: bool = True
    is_quantized: bool = False
    linears: tuple[LinearShape, ...] = ()
    layers_prefix: str = ""
    tokenizer_bytes: int = 0

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layer_parameters)

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        return sum(self.layer_parameters) + self.embedding + self.head + self.other

    @property
    def head_matrix(self) -> int:
        """Parameters that the last matrix product reads, tied or not."""
        return self.head or self.embedding

    @property
    def attention_width(self) -> int:
        """Columns of the query, key and value together."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def mlp_matrices(self) -> int:
        """Matrices of hidden x intermediate in a layer, from what its parameters leave beside attention."""
        attention = self.hidden_size * (self.attention_width + self.num_heads * self.head_dim)
        mean = sum(self.layer_parameters) / max(1, self.num_layers)
        return max(1, round((mean - attention) / (self.hidden_size * self.intermediate_size)))

    @property
    def matmul_parameters(self) -> int:
        """Parameters that each token is multiplied with; an embedding lookup is not a product."""
        return sum(self.layer_parameters) + self.head_matrix

    def adapted(self, targets: Sequence[str]) -> list[LinearShape]:
        """The linear layers that an adapter of these targets changes; all but gates and routers where none is named.

        A target may name the linear layer of one decoder layer, as in ``model.layers.3.mlp.down_proj``; the share of
        what is returned is that of the decoder layers which are meant.
        """
        if not targets:
            return [linear for linear in self.linears if not is_slim(linear.rows, linear.columns)]
        found = []
        for linear in self.linears:
            share = linear.share
            if not ends_with(linear.name, targets):
                numbered = [target for target in targets if any(map(str.isdigit, target.split(".")))]
                meant = sum(
                    self._is_meant(index, linear, numbered) for index in range(self.num_layers * bool(numbered))
                )
                share = min(share, meant / max(1, self.num_layers))
            if share:
                found.append(replace(linear, share=share))
        return found

    def _is_meant(self, index: int, linear: LinearShape, targets: Sequence[str]) -> bool:
        name = f"{index}.{linear.name}"
        # In the model, the path before the number can be longer than in the files.
        return ends_with(f"{self.layers_prefix}.{name}", targets) or any(
            ends_with(target, [name]) for target in targets
        )

    def adapter_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Numbers in a low-rank adapter; 0 for rank 0."""
        in_a_layer = sum(linear.share * (linear.rows + linear.columns) for linear in self.adapted(targets))
        return int(rank * in_a_layer * self.num_layers)

    def trained_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Parameters with gradients and moments: all, or for a rank above 0 those of the adapter."""
        return self.adapter_parameters(rank, targets) if rank else self.parameters

    def with_layers(self, num_layers: int, named: Sequence[int] | None = None) -> ModelShape:
        """The same model with fewer layers, as it is cut from a teacher; learnt positions and norms stay.

        Args:
            num_layers: how many stay.
            named: which; while they are not chosen yet, the largest ones are counted.
        """
        if named is not None:
            return replace(self, layer_parameters=tuple(self.layer_parameters[index] for index in named))
        return replace(self, layer_parameters=tuple(sorted(self.layer_parameters, reverse=True)[:num_layers]))

    def with_width(self, neurons: int, heads: int, kv_heads: int) -> ModelShape:
        """The same model with fewer neurons in each MLP and fewer heads; see :mod:`engine.model_files.narrow`."""
        gone = self.hidden_size * self.mlp_matrices * (self.intermediate_size - neurons)
        gone += self.hidden_size * self.head_dim * 2 * (self.num_heads - heads + self.num_kv_heads - kv_heads)
        width = self.num_heads * self.head_dim
        sizes = {
            self.intermediate_size: neurons,
            self.num_kv_heads * self.head_dim: kv_heads * self.head_dim,
            width: heads * self.head_dim,
            self.hidden_size: self.hidden_size,
        }
        return replace(
            self,
            linears=tuple(
                replace(
                    linear, rows=sizes.get(linear.rows, linear.rows), columns=sizes.get(linear.columns, linear.columns)
                )
                for linear in self.linears
            ),
            intermediate_size=neurons,
            num_heads=heads,
            num_kv_heads=kv_heads,
            layer_parameters=tuple(parameters - gone for parameters in self.layer_parameters),
        )


def shape_of(spec: ModelSpec) -> ModelShape:
    """The sizes in a model's description."""
    return ModelShape(
        name=spec.name,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        layer_parameters=tuple(spec.layer_parameters),
        embedding=spec.embedding_parameters,
        head=spec.head_parameters,
        other=spec.other_parameters,
        stored_bytes=FLOAT_BYTES.get(spec.dtype, 4),
        # Dequantised weights are never the file's own pages.
        stored_precision="" if is_decoded(spec.path) else _PRECISIONS.get(spec.dtype, ""),
        max_positions=spec.max_positions,
        model_type=spec.model_type,
        fused_attention=any(_FUSED.search(name) for name in spec.tensors),
        plain_norms=any(_NORM_BIAS.search(name) for name in spec.tensors),
        has_plain_head=_has_plain_head(spec),
        is_quantized=_is_quantized(spec),
        linears=_linears(spec),
        layers_prefix=spec.layers_prefix,
        tokenizer_bytes=_size(spec.path / "tokenizer.json"),
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _has_plain_head(spec: ModelSpec) -> bool:
    if any(spec.config.get(key) not in (None, 1, 0) for key in _HEAD_MORE):
        return False
    base = spec.config.get("dim_model_base")  # MiniCPM3 divides its hidden states by the width over this
    return base in (None, spec.hidden_size) and not any(map(_PART_OF_HEAD.search, spec.tensors))


def _is_quantized(spec: ModelSpec) -> bool:
    # An embedding is often left as it is, and larger than the layers of a small model.
    stem = f"{spec.layers_prefix}."
    matrices = [
        tensor for name, tensor in spec.tensors.items() if name.startswith(stem) and len(tensor.shape) in (2, 3)
    ]
    small = sum(tensor.numel for tensor in matrices if tensor.decoder is not None and tensor.nbytes < 2 * tensor.numel)
    return 2 * small > sum(tensor.numel for tensor in matrices)


def _linears(spec: ModelSpec) -> tuple[LinearShape, ...]:
    """Matrices of the decoder layers, by their names in the files."""
    found: dict[tuple[str, int, int], int] = {}
    stem = f"{spec.layers_prefix}."
    for name, tensor in spec.tensors.items():
        is_matrix = name.startswith(stem) and name.endswith(".weight") and len(tensor.shape) == 2
        if is_matrix and not _EXPERT.search(name) and not _NORM.search(name):
            _, _, path = name.removeprefix(stem).removesuffix(".weight").partition(".")
            key = (path, tensor.shape[0], tensor.shape[1])
            found[key] = found.get(key, 0) + 1
    return tuple(
        LinearShape(path, rows, columns, count / max(1, spec.num_layers))
        for (path, rows, columns), count in found.items()
    )
