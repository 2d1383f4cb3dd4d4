"""A narrower student: fewer neurons in each MLP, fewer key-value heads with the query heads that belong to them.

Hidden size, layers and vocabulary stay, so that the result is a plain model of the teacher's architecture with smaller
numbers in its configuration. Only the usual block can be narrowed (gate, up and down projections; query, key, value and
output projections apart); others are refused by name. Which neurons and heads stay is the caller's to say
(engine.teacher.width measures it); what a layer computes is not known here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.errors import ModelError
from engine.model_files.spec import ModelSpec

# Widths of an MLP are a multiple of this: matrix products are no faster in between.
_MULTIPLE = 16
MLP = re.compile(r"mlp\.(gate_proj|up_proj|down_proj)\.(weight|bias)$")
ATTENTION = re.compile(r"self_attn\.(q_proj|k_proj|v_proj|o_proj)\.(weight|bias)$")
_NEEDED = {"mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"} | {
    f"self_attn.{name}_proj.weight" for name in "qkvo"
}


@dataclass(frozen=True)
class Width:
    """The sizes of a narrower model.

    Attributes:
        neurons: in each MLP.
        kv_heads: key-value heads in each layer.
        heads: query heads, as many for each key-value head as the teacher has.
    """

    neurons: int
    kv_heads: int
    heads: int


@dataclass(frozen=True)
class Kept:
    """Of one of the teacher's layers.

    Attributes:
        neurons: indices of the MLP's neurons that stay, rising.
        kv_heads: indices of the key-value heads that stay, rising.
    """

    neurons: tuple[int, ...]
    kv_heads: tuple[int, ...]


def width_of(spec: ModelSpec, share: float) -> Width:
    """The sizes nearest to a share of the teacher's.

    Key-value heads stay all where fewer would not be a model (the hidden size has to be a multiple of the query heads).

    Raises:
        ModelError: layers of this kind cannot be narrowed.
    """
    _check(spec)
    neurons = max(_MULTIPLE, _MULTIPLE * round(share * spec.intermediate_size / _MULTIPLE))
    in_group = max(1, spec.num_heads // spec.num_kv_heads)
    wanted = max(1, round(share * spec.num_kv_heads))
    kv_heads = next(
        (count for count in range(wanted, spec.num_kv_heads) if spec.hidden_size % (count * in_group) == 0),
        spec.num_kv_heads,
    )
    return Width(min(neurons, spec.intermediate_size), kv_heads, kv_heads * in_group)


def selection(spec: ModelSpec, name: str, kept: Kept) -> tuple[list[int] | None, list[int] | None]:
    """Rows and columns that stay of a layer's tensor; None for all.

    Args:
        spec: the teacher.
        name: of the tensor within its layer, as in ``mlp.gate_proj.weight``.
        kept: what stays of the layer.
    """
    if match := MLP.match(name):
        neurons = list(kept.neurons)
        if match[1] == "down_proj":
            return None, (neurons if match[2] == "weight" else None)
        return neurons, None
    if match := ATTENTION.match(name):
        in_group = max(1, spec.num_heads // spec.num_kv_heads)
        heads = [group * in_group + place for group in kept.kv_heads for place in range(in_group)]
        if match[1] == "o_proj":
            return None, (_places(heads, spec.head_dim) if match[2] == "weight" else None)
        return _places(heads if match[1] == "q_proj" else list(kept.kv_heads), spec.head_dim), None
    return None, None


def _places(heads: list[int], head_dim: int) -> list[int]:
    return [head * head_dim + place for head in heads for place in range(head_dim)]


def _check(spec: ModelSpec) -> None:
    names: dict[int, set[str]] = {}
    for name in spec.tensors:
        if match := re.match(rf"{re.escape(spec.layers_prefix)}\.(\d+)\.", name):
            names.setdefault(int(match[1]), set()).add(name[match.end() :])
    usual = all(names.get(index, set()) >= _NEEDED for index in range(spec.num_layers))
    wide = spec.num_heads * spec.head_dim
    odd = [
        name
        for name, tensor in spec.tensors.items()
        if name.startswith(f"{spec.layers_prefix}.")
        and len(tensor.shape) == 1
        and wide in tensor.shape
        and wide != spec.hidden_size
        and not ATTENTION.search(name)
    ]
    if not usual or odd or isinstance(spec.config.get("intermediate_size"), list):
        raise ModelError(
            f"{spec.name} ({spec.architecture or spec.model_type}) cannot be made narrower.",
            "Its layers are not made of gate, up and down projections and of query, key, value and output projections "
            "apart."
            if not usual
            else "Its layers differ in width, or hold more for each head than projections.",
            "Leave out --student_width, and choose fewer --student_layers.",
        )
