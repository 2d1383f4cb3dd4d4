"""Construction of a student from some of its teacher's layers, with embedding, norms and lm_head.

The caller says which layers (engine.teacher.depth measures it); a number of layers means the first, the last, and
evenly spaced ones between: DistilBERT's start (Sanh et al. 2019, https://arxiv.org/abs/1910.01108, section 3). The
result is a model folder like any other: the teacher with the other layers left out. Weights are copied tensor by tensor
as bytes, in pieces of a few megabytes; quantised ones are dequantised on the way. The computation of a layer is not
known here.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from engine.disk.files import fsync_file, fsync_folder, make_folder, write_atomic, written_whole
from engine.disk.safetensors_header import safetensors_header
from engine.errors import ModelError
from engine.model_files.headers import DTYPES, TensorInfo, read_bytes
from engine.model_files.narrow import Kept, Width, selection
from engine.model_files.spec import ModelSpec
from engine.models.checkpoint import Checkpoint
from engine.models.core import find_core
from engine.models.load import UNUSABLE, quiet
from engine.models.meta import build_on_meta, read_config
from engine.models.weight_plan import plan_weights

# Files that are copied unchanged: the tokenizer and the terms of use. Files that may name a model's own code.
_COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken",
    "tekken.json", "chat_template*", "LICENSE*", "NOTICE*",
)  # fmt: skip
_NUMBERS_OF_LAYERS = (
    *("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"),
)
_MAY_NAME_CODE = ("config.json", "tokenizer_config.json")
_HEADER_WORDS = {ours: theirs for theirs, ours in DTYPES.items()}
_COPY_BYTES = 8 * 2**20


def derive_student(
    spec: ModelSpec,
    layers: int | Sequence[int],
    out: Path,
    *,
    width: Width | None = None,
    parts: Mapping[int, Kept] | None = None,
) -> list[int]:
    """Write a model folder with some of the teacher's layers.

    Args:
        spec: the teacher, described.
        layers: of the teacher, in rising order; or their number, from 1 to the teacher's, evenly spaced.
        out: the folder to write; made where it is missing.
        width: sizes of a narrower student; the teacher's where None.
        parts: with a width, the neurons and heads that stay of each kept layer.

    Returns:
        The teacher's layers that were kept, in order.

    Raises:
        ModelError: the teacher has fewer layers, or a file of it ended early.
    """
    kept = list(layers) if not isinstance(layers, int) else layers_to_keep(spec.num_layers, layers)
    if not kept or len(kept) > spec.num_layers or kept[-1] >= spec.num_layers:
        raise ModelError(
            f"A student of {len(kept)} layers cannot be cut from {spec.name}, which has {spec.num_layers}.",
            "",
            f"Choose --student_layers from 1 to {spec.num_layers}.",
        )
    config = _student_config(spec, kept)
    if width is not None:
        config |= {
            "intermediate_size": width.neurons,
            "num_attention_heads": width.heads,
            "num_key_value_heads": width.kv_heads,
            "head_dim": spec.head_dim,
        }
    make_folder(out, parents=False)
    _write_weights(spec, kept, parts or {}, out / "model.safetensors")
    generation = [file for file in (spec.path / "generation_config.json",) if file.is_file()]
    for file in (*companions(spec.path), *generation):
        shutil.copyfile(file, out / file.name)
        fsync_file(out / file.name)
    fsync_folder(out)
    # The configuration comes last: a folder without one is not taken for a model.
    write_atomic(out / "config.json", json.dumps(config, indent=2) + "\n")
    return kept


def companions(folder: Path) -> list[Path]:
    """The files of a folder that another model takes over unchanged: tokenizer, chat template, licence, code.

    Code is taken where ``auto_map`` names some: other scripts that happen to be in the folder are not the model's.
    """
    found = {file for pattern in _COMPANIONS for file in folder.glob(pattern) if file.is_file()}
    told = [folder / name for name in _MAY_NAME_CODE if (folder / name).is_file()]
    if any('"auto_map"' in path.read_text(encoding="utf-8", errors="replace") for path in told):
        found |= set(folder.glob("*.py"))
    return sorted(found)


def layers_to_keep(teacher_layers: int, num_layers: int) -> list[int]:
    """``num_layers`` of the indices below ``teacher_layers``: the first, the last, and evenly spread ones between."""
    if num_layers == 1:
        return [0]
    if num_layers > teacher_layers:
        return list(range(num_layers))  # more than there are: the caller refuses
    # Rounding half up keeps the distances the same on both sides of the middle as nearly as they can be.
    return [
        (2 * place * (teacher_layers - 1) + num_layers - 1) // (2 * (num_layers - 1)) for place in range(num_layers)
    ]


def layer_kinds(spec: ModelSpec) -> list[Hashable]:
    """Return each layer's kind: its type in the configuration, and its tensors' names and shapes."""
    known = read_config(spec.path, trust_remote_code=spec.trust_remote_code).to_dict()
    called = known.get("layer_types") or []
    called = called if len(called) == spec.num_layers else [None] * spec.num_layers
    tensors: list[set[tuple[str, tuple[int, ...]]]] = [set() for _ in range(spec.num_layers)]
    for name, tensor in spec.tensors.items():
        match = re.match(rf"{re.escape(spec.layers_prefix)}\.(\d+)\.", name)
        if match and int(match[1]) < spec.num_layers:
            tensors[int(match[1])].add((name[match.end() :], tuple(tensor.shape)))
    return [(kind, frozenset(names)) for kind, names in zip(called, tensors, strict=True)]


def _without_weights(folder: Path) -> PreTrainedModel:
    """A model from the configuration alone; code of the teacher's own is not run."""
    config = read_config(folder, trust_remote_code=False)
    model = build_on_meta(config, dtype=torch.float32, trust_remote_code=False)
    model.tie_weights()
    return model


def is_valid_cut(spec: ModelSpec, kept: Sequence[int]) -> bool:
    """Return whether these layers form a valid model: not if the architecture gives layers their kinds by number.

    A model without weights is made from the configuration that the student would have, and its layers' parameters and
    constants are compared with those of the teacher's layers. Where layers are left out, the tensors outside of the
    layers must keep their shapes, and no two layers may share a tensor: the files hold it under one layer's name. Code
    of the teacher's own is not tried; the student's loading tells.
    """
    if spec.runs_own_code:
        return True
    kept = list(kept)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_student_config(spec, kept)))
        try:
            with quiet():
                student, teacher = (_without_weights(path) for path in (Path(folder), spec.path))
                mine, theirs = find_core(student).layers, find_core(teacher).layers
        except UNUSABLE:
            return False
    if not (student.config.get_text_config().to_dict().get("num_kv_shared_layers") or 0):
        for layer in (*mine, *theirs):  # keys and values that are kept for later layers, of which there are none
            _forget(layer, "store_full_length_kv")
    if kept == list(range(spec.num_layers)):
        return len(mine) == len(kept)
    held = [id(parameter) for layer in theirs for parameter in layer.parameters()]
    return (
        len(mine) == len(kept)
        and len(set(held)) == len(held)
        and _hold_their_weights(spec, teacher)
        and _shapes_outside(student, mine) == _cut_shapes(spec, kept, _shapes_outside(teacher, theirs))
        and all(_computes_alike(layer, theirs[index], kept) for layer, index in zip(mine, kept, strict=True))
    )


def _shapes_outside(model: nn.Module, layers: nn.ModuleList) -> list[tuple[str, tuple[int, ...]]]:
    inside = {id(parameter) for parameter in layers.parameters()}
    return [(name, tuple(tensor.shape)) for name, tensor in model.named_parameters() if id(tensor) not in inside]


def _hold_their_weights(spec: ModelSpec, teacher: PreTrainedModel) -> bool:
    """Whether the files hold what is in a layer under that layer's number, and nowhere else.

    Inkling 2 keeps some of it in a list of its own, whose numbers begin with the second layer.
    """
    prefix = find_core(teacher).layers_prefix
    checkpoint = Checkpoint(spec.path)
    try:
        recipes = plan_weights(teacher, checkpoint, torch.float32).recipes
    finally:
        checkpoint.close()
    for target, recipe in recipes.items():
        if match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", target):
            stem = f"{spec.layers_prefix}.{match[1]}."
            if not all(source.startswith(stem) for source in recipe.sources):
                return False
    return True


def _forget(layer: nn.Module, constant: str) -> None:
    for module in layer.modules():
        vars(module).pop(constant, None)


def _cut_shapes(
    spec: ModelSpec, kept: Sequence[int], shapes: Sequence[tuple[str, tuple[int, ...]]]
) -> list[tuple[str, tuple[int, ...]]]:
    """Shapes of tensors outside of the layers, without the parts that belong to layers that go."""
    found = []
    for name, shape in shapes:
        rows, columns = _parts_of_layers(spec, name, shape, kept)
        cut = [len(part) if part is not None else size for part, size in zip((rows, columns), shape, strict=False)]
        found.append((name, (*cut, *shape[2:])))
    return found


def _parts_of_layers(
    spec: ModelSpec, name: str, shape: Sequence[int], kept: Sequence[int]
) -> tuple[list[int] | None, list[int] | None]:
    """Rows and columns that stay of a tensor outside of the layers; None for all.

    Gemma 3n and 4 have an embedding for each layer, side by side in one matrix, and a projection to them.
    """
    width = spec.config.get("hidden_size_per_layer_input")
    if not isinstance(width, int) or not width or "per_layer" not in name or len(shape) != 2:
        return None, None
    stay = [index * width + place for index in kept for place in range(width)]
    whole = spec.num_layers * width
    if shape[0] == whole:
        return stay, None
    return None, (stay if shape[1] == whole else None)


def _computes_alike(mine: nn.Module, theirs: nn.Module, kept: Sequence[int]) -> bool:
    """Whether two layers have parameters of the same shapes and the same constants.

    Some architectures compute a constant from the layer's number, as DiffLlama and Beam do. A constant that is the
    number of a layer, its own or another one that stays, has to be that layer's number in the student.
    """
    if _shapes(mine) != _shapes(theirs):
        return False
    ours, others = _constants(mine), _constants(theirs)
    return ours.keys() == others.keys() and all(
        ours[name] == others[name] or _is_same_layer(ours[name], others[name], kept) for name in ours
    )


def _is_same_layer(mine: object, theirs: object, kept: Sequence[int]) -> bool:
    """Whether two constants are the numbers of a layer in the student and in the teacher, counted from 0 or from 1."""
    return any((mine, theirs) == (place + first, index + first) for first in (0, 1) for place, index in enumerate(kept))


def _shapes(layer: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()]


def _constants(layer: nn.Module) -> dict[tuple[str, str], Hashable]:
    return {
        (path, name): value
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str)
    }


def _student_config(spec: ModelSpec, kept: list[int]) -> dict[str, Any]:
    """The teacher's configuration with fewer layers; what it says of single layers is cut the same way."""
    config = dict(spec.config)
    # Where the file leaves a layer's kind to its number, the number means another kind in the student: spell it out.
    known = read_config(spec.path, trust_remote_code=spec.trust_remote_code).to_dict()
    by_number = ("layer_types", "no_rope_layers", "moe_layers")
    config |= {name: known[name] for name in by_number if known.get(name)}
    if known.get("decoder_sparse_step", 1) != 1:  # every n-th layer has experts: say which of the kept ones have none
        step, dense = known["decoder_sparse_step"], known.get("mlp_only_layers") or []
        config["mlp_only_layers"] = sorted({*dense, *(i for i in range(spec.num_layers) if (i + 1) % step)})
        config["decoder_sparse_step"] = 1
    for name, value in config.items():
        if name in _NUMBERS_OF_LAYERS:
            config[name] = len(kept)
        elif name in ("mlp_only_layers", "moe_layers") and isinstance(value, list | None):  # numbers of layers
            config[name] = [kept.index(index) for index in value or () if index in kept]
        elif name == "first_k_dense_replace":  # how many at the beginning
            config[name] = sum(index < (value or 0) for index in kept)
        elif name == "num_kv_shared_layers":  # how many at the end
            config[name] = sum(index >= spec.num_layers - (value or 0) for index in kept)
        elif name == "per_layer_config" and isinstance(value, dict):  # what differs in some layers, by their numbers
            config[name] = {str(kept.index(int(key))): entry for key, entry in value.items() if int(key) in kept}
        elif name == "num_nextn_predict_layers":  # layers past the last, which are not copied
            config[name] = 0
        elif isinstance(value, list) and len(value) == spec.num_layers and not name.endswith("token_id"):
            config[name] = [value[index] for index in kept]
    return config


@dataclass(frozen=True)
class _Slice:
    """A tensor of the teacher's, or the rows or columns of it that stay."""

    tensor: TensorInfo
    rows: list[int] | None = None
    columns: list[int] | None = None

    @property
    def shape(self) -> list[int]:
        shape = list(self.tensor.shape)
        for place, chosen in ((0, self.rows), (1, self.columns)):
            if chosen is not None:
                shape[place] = len(chosen)
        return shape

    @property
    def nbytes(self) -> int:
        return self.tensor.value_bytes // max(1, math.prod(self.tensor.shape)) * math.prod(self.shape)

    def pieces(self) -> Iterator[bytes]:
        """The bytes, some megabytes at a time."""
        if self.tensor.decoder is not None:
            yield from self._decoded()
            return
        if self.rows is None and self.columns is None:
            yield from _pieces(self.tensor)
            return
        size = self.tensor.nbytes // math.prod(self.tensor.shape)
        width = math.prod(self.tensor.shape[1:]) * size
        at_a_time = max(1, _COPY_BYTES // max(1, width))
        for start in range(0, self.tensor.shape[0], at_a_time):
            count = min(at_a_time, self.tensor.shape[0] - start)
            block = read_bytes(self.tensor.file, self.tensor.offset + start * width, count * width)
            yield self._chosen(block.reshape(count, -1, size), start).tobytes()

    def _decoded(self) -> Iterator[bytes]:
        """The same of a quantised tensor: its numbers in the format that the student will be stored in."""
        decoder, dtype = self.tensor.decoder, getattr(torch, self.tensor.dtype)
        assert decoder is not None
        width = math.prod(self.tensor.shape[1:])
        at_a_time = max(1, _COPY_BYTES // 4 // max(1, width), decoder.step // max(1, width))
        for start in range(0, self.tensor.shape[0], at_a_time):
            end = min(start + at_a_time, self.tensor.shape[0])
            block = decoder.values(read_bytes, start * width, (end - start) * width).reshape(end - start, width)
            chosen = np.ascontiguousarray(self._chosen(block, start))
            yield torch.from_numpy(chosen).to(dtype).view(torch.uint8).numpy().tobytes()

    def _chosen(self, block: NDArray[Any], start: int) -> NDArray[Any]:
        """The rows and columns that stay of a block, [rows, columns, ...], whose first row is ``start``."""
        if self.rows is not None:
            block = block[[row - start for row in self.rows if start <= row < start + len(block)]]
        return block if self.columns is None else block[:, self.columns]


def _write_weights(spec: ModelSpec, kept: list[int], parts: Mapping[int, Kept], path: Path) -> None:
    """One safetensors file with the kept layers under their new numbers; written aside, then renamed."""
    tensors = dict(_renamed(spec, kept, parts))
    header = safetensors_header(
        (name, _HEADER_WORDS.get(tensor.tensor.dtype, tensor.tensor.dtype), tensor.shape, tensor.nbytes)
        for name, tensor in tensors.items()
    )
    with written_whole(path) as stream:
        stream.write(header)
        for tensor in tensors.values():
            for piece in tensor.pieces():
                stream.write(piece)


def _renamed(spec: ModelSpec, kept: list[int], parts: Mapping[int, Kept]) -> Iterator[tuple[str, _Slice]]:
    """The student's tensors by their new names."""
    for name, tensor in spec.tensors.items():
        match = re.match(rf"{re.escape(spec.layers_prefix)}\.(\d+)\.", name)
        if match is None:
            yield name, _Slice(tensor, *_parts_of_layers(spec, name, tensor.shape, kept))
        elif int(match[1]) in kept:
            index, inner = int(match[1]), name[match.end() :]
            chosen = selection(spec, inner, parts[index]) if index in parts else (None, None)
            yield f"{spec.layers_prefix}.{kept.index(index)}.{inner}", _Slice(tensor, *chosen)


def _pieces(tensor: TensorInfo) -> Iterator[bytes]:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset)
        left = tensor.nbytes
        while left:
            piece = stream.read(min(left, _COPY_BYTES))
            if not piece:
                raise ModelError(f"{tensor.file} ended early.", "It changed while it was read.", "Try again.")
            left -= len(piece)
            yield piece
