"""An adapter as files: a folder that peft loads, and the whole student with the adapter merged into its base.

Both are made tensor by tensor. The base is read from the files that the student began as, never from the model in
memory, which may be quantised: so an adapter is merged into the weights as they are stored, in their own format.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from engine.disk.tensor_file import write_pieces, write_tensors
from engine.errors import ModelError
from engine.model_files.spec import ModelSpec
from engine.model_files.weight_files import model_of
from engine.models.checkpoint import Checkpoint
from engine.models.core import find_core
from engine.models.linears import Linear, decoder_linears
from engine.models.load import quiet
from engine.models.meta import build_on_meta, read_config
from engine.models.weight_plan import plan_weights
from engine.student.adapter import LowRankAdapter
from engine.student.rounding import draws_of, rounded

ADAPTER = "adapter"
"""The adapter's folder in that of the student."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PIECE_ELEMENTS = 1 << 20


def write_adapter(
    adapter: LowRankAdapter, model: PreTrainedModel, folder: Path, *, base: str, source: Path | None = None
) -> list[str]:
    """Write a folder for ``PeftModel.from_pretrained``.

    peft reads the names of some linear layers as those of experts, which transformers 5 fuses into one block
    (``peft.utils.transformers_weight_conversion`` in 0.21): in DeepSeek's models, ``gate_proj`` of a layer without
    experts. It would leave the adapters of such layers out without an error. As ``target_parameters`` peft leaves their
    names alone, and computes the same.

    Args:
        adapter: the trained one.
        model: the model that it belongs to.
        folder: created.
        base: the base model's name, which stands in the configuration.
        source: the base's folder. Where it stands for a model for pictures whose text model was trained, the matrices
            have the names that such a model gives its text model.

    Returns:
        A note for the user where peft would not read all of it.
    """
    from peft import LoraConfig, TaskType  # takes two seconds and 60 MB, which runs without an adapter do not pay

    folder.mkdir()
    shape = adapter.shape
    whole, theirs = _wrapper_of(source, model)
    ours = find_core(model).layers_prefix

    def named(name: str) -> str:
        return f"{theirs}{name.removeprefix(ours)}"

    matrices = {f"{_PREFIX}{named(name)}": tensor for name, tensor in adapter.tensors().items()}
    renamed = _renamed_by_peft(whole)
    as_parameters = [named(linear.name) for linear in adapter.linears if linear.kind in renamed]
    as_modules = target_modules([named(linear.name) for linear in adapter.linears], whole)
    if as_parameters:
        as_modules = [named(linear.name) for linear in adapter.linears if linear.kind not in renamed]
    LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=as_modules,
        target_parameters=[f"{name}.weight" for name in as_parameters] or None,
        fan_in_fan_out=any(linear.transposed for linear in adapter.linears),
        base_model_name_or_path=base,
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
    ).save_pretrained(folder)
    write_tensors(folder / ADAPTER_WEIGHTS, matrices)
    config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # peft keeps a set, whose order is not the same twice
    if config.get("target_parameters"):
        config["target_parameters"] = sorted(config["target_parameters"])
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if _is_read_by_peft(matrices, whole, folder):
        return []
    return [
        f"peft {version('peft')} does not read every matrix of {folder.name}/ for {type(whole).__name__}: it gives the "
        "weights of this architecture other names. The student's own files have the adapter merged in."
    ]


def _wrapper_of(source: Path | None, model: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """The model for pictures that the base is a part of, without weights, and the path of its text layers.

    The model itself, and its own layers, where the base is no such part.
    """
    found = find_core(model)
    alone = model, found.layers_prefix
    there = None if source is None else Path(model_of(source))
    if there is None or there == source or not (there / "config.json").is_file():
        return alone
    with quiet():
        config = read_config(there, trust_remote_code=False)
        if config.get_text_config() is config:
            return alone
        whole = _without_weights(config)
    wanted = [name for name, _ in found.layers.named_parameters()]
    prefixes = [
        name
        for name, module in whole.named_modules()
        if isinstance(module, nn.ModuleList) and [path for path, _ in module.named_parameters()] == wanted
    ]
    return (whole, prefixes[0]) if prefixes else alone


def _without_weights(config: PretrainedConfig) -> PreTrainedModel:
    try:
        return build_on_meta(config, dtype=torch.float32, trust_remote_code=False)
    except ModelError:  # a wrapper that is no causal model by transformers' table
        with torch.device("meta"):
            found: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
        return found


def _is_read_by_peft(matrices: Mapping[str, Tensor], model: PreTrainedModel, folder: Path) -> bool:
    """Whether peft finds a place for each matrix, in a model without weights."""
    import peft

    if getattr(model.config, "auto_map", None):
        return True  # its own code would have to be loaded again
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            empty = _without_weights(model.config)
            there = peft.get_peft_model(empty, peft.PeftConfig.from_pretrained(str(folder)))
            found = peft.set_peft_model_state_dict(there, dict(matrices))
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError):
        return False
    return not found.unexpected_keys and not any(".lora_" in name for name in found.missing_keys)


def _renamed_by_peft(model: PreTrainedModel) -> frozenset[str]:
    """Kinds of linear layers whose names peft would change for this model; none where peft does not say."""
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # an older peft
        return frozenset()

    def stays(kind: str) -> bool:
        config = LoraConfig(target_modules=[kind])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # it asks for the other half of a fused weight
            return False
        return set(config.target_modules or ()) == {kind}

    return frozenset(kind for kind in {linear.kind for linear in decoder_linears(model)} if not stays(kind))


def target_modules(adapted: Sequence[str], model: PreTrainedModel) -> list[str]:
    """The adapted layers as peft names them: by their kinds, or one by one where a kind has other members too."""
    names = set(adapted)
    kinds = sorted({name.rpartition(".")[2] for name in names})
    meant = {
        name for name, _ in model.named_modules() if any(name.endswith(f".{kind}") or name == kind for kind in kinds)
    }
    return kinds if meant == names else sorted(names)


def write_merged(adapter: LowRankAdapter, source: ModelSpec, path: Path) -> None:
    """Write the base's weights with the adapter's changes added, a piece of a tensor at a time.

    A changed weight is added up in float32 and rounded once, by chance, to the format that it is stored in
    (:mod:`engine.student.rounding`); every other tensor keeps its bytes.

    Args:
        adapter: the trained one.
        source: the base.
        path: the safetensors file, which must not exist.

    Raises:
        ModelError: an adapted layer's weight is not one tensor of the base's files.
    """
    checkpoint = Checkpoint(source.path)
    try:
        changed = _sources(adapter, checkpoint, source.trust_remote_code)
        described = [(name, checkpoint.dtype(name), info.shape) for name, info in checkpoint.tensors.items()]

        def pieces() -> Iterator[Tensor]:
            for name, dtype, shape in described:
                if (linear := changed.get(name)) is not None:
                    yield from _merged(adapter, linear, checkpoint, name, dtype)
                    continue
                count = math.prod(shape)
                for first in range(0, count, _PIECE_ELEMENTS):
                    piece = torch.empty(min(_PIECE_ELEMENTS, count - first), dtype=dtype)
                    checkpoint.read(name, piece, first=first)
                    yield piece

        write_pieces(path, described, pieces())
    finally:
        checkpoint.close()


def _sources(adapter: LowRankAdapter, checkpoint: Checkpoint, trust_remote_code: bool) -> dict[str, Linear]:
    """The adapted layers by the names of their weights in the base's files."""
    with quiet():
        config = read_config(checkpoint.folder, trust_remote_code=trust_remote_code)
        # Its layers have the names that the files are planned for; those of the model in memory may be quantised.
        model = build_on_meta(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    return merged_into(adapter.linears, model, checkpoint)


def merged_into(linears: Sequence[Linear], model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, Linear]:
    """Linear layers by the names of their weights in the base's files.

    Args:
        linears: that are adapted.
        model: of the base, without weights.
        checkpoint: the base's files.

    Raises:
        ModelError: a layer's weight is not one tensor of these files.
    """
    plan = plan_weights(model, checkpoint, torch.float32)
    changed = {}
    for linear in linears:
        recipe = plan.recipes.get(f"{linear.name}.weight")
        if recipe is None or recipe.converter is not None:
            raise ModelError(
                f"{linear.name}.weight is not one tensor of the files in {checkpoint.folder}.",
                "The adapter cannot be merged into it.",
                "Name other layers with --lora_targets, or train all weights: --lora_rank 0.",
            )
        changed[recipe.sources[0]] = linear
    return changed


def _merged(
    adapter: LowRankAdapter, linear: Linear, checkpoint: Checkpoint, name: str, dtype: torch.dtype
) -> Iterator[Tensor]:
    """A changed weight, some of its rows at a time."""
    a, b = (matrix.cpu() for matrix in adapter.pair(linear.name))
    left, right = (a.T, b.T) if linear.transposed else (b, a)
    rows, columns = left.shape[0], right.shape[1]
    step = max(1, _PIECE_ELEMENTS // columns)
    draws = draws_of(name)
    for first in range(0, rows, step):
        piece = torch.empty(min(step, rows - first), columns)
        checkpoint.read(name, piece, first=first * columns)
        piece.addmm_(left[first : first + step], right, alpha=adapter.scale)
        yield rounded(piece, dtype, draws)
