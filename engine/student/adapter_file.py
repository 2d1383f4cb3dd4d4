"""An adapter as files: a folder that peft loads, and the whole student with the adapter merged into its base.

Both are made tensor by tensor. The base is read from the files that the student began as, never from the model in
memory, which may be quantised: so an adapter is merged into the weights as they are stored, in their own format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.disk.tensor_file import write_pieces, write_tensors
from engine.errors import ModelError
from engine.model_files.spec import ModelSpec
from engine.models.checkpoint import Checkpoint
from engine.models.linears import Linear
from engine.models.load import quiet
from engine.models.meta import build_on_meta, read_config
from engine.models.weight_plan import plan_weights
from engine.student.adapter import LowRankAdapter

ADAPTER = "adapter"
"""The adapter's folder in that of the student."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PIECE_ELEMENTS = 1 << 20


def write_adapter(adapter: LowRankAdapter, model: PreTrainedModel, folder: Path, *, base: str) -> None:
    """Write a folder for ``PeftModel.from_pretrained``.

    Args:
        adapter: the trained one.
        model: the model that it belongs to.
        folder: created.
        base: the base model's name, which stands in the configuration.
    """
    from peft import LoraConfig, TaskType  # takes two seconds and 60 MB, which runs without an adapter do not pay

    folder.mkdir(parents=True)
    shape = adapter.shape
    LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=target_modules(adapter, model),
        fan_in_fan_out=any(linear.transposed for linear in adapter.linears),
        base_model_name_or_path=base,
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
    ).save_pretrained(folder)
    write_tensors(folder / ADAPTER_WEIGHTS, {f"{_PREFIX}{name}": tensor for name, tensor in adapter.tensors().items()})
    config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # peft keeps a set, whose order is not the same twice
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def target_modules(adapter: LowRankAdapter, model: PreTrainedModel) -> list[str]:
    """The adapted layers as peft names them: by their kinds, or one by one where a kind has other members too."""
    names = {linear.name for linear in adapter.linears}
    kinds = sorted({linear.kind for linear in adapter.linears})
    meant = {
        name for name, _ in model.named_modules() if any(name.endswith(f".{kind}") or name == kind for kind in kinds)
    }
    return kinds if meant == names else sorted(names)


def write_merged(adapter: LowRankAdapter, source: ModelSpec, path: Path) -> None:
    """Write the base's weights with the adapter's changes added, a piece of a tensor at a time.

    A changed weight is added up in float32 and rounded once, to the format that it is stored in; every other tensor
    keeps its bytes.

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
    plan = plan_weights(model, checkpoint, torch.float32)
    changed = {}
    for linear in adapter.linears:
        recipe = plan.recipes.get(f"{linear.name}.weight")
        if recipe is None or recipe.converter is not None:
            raise ModelError(
                f"{linear.name}.weight is not one tensor of the files in {checkpoint.folder}.",
                "The adapter cannot be merged into it.",
                "Name other layers with --lora_targets.",
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
    for first in range(0, rows, step):
        piece = torch.empty(min(step, rows - first), columns)
        checkpoint.read(name, piece, first=first * columns)
        piece.addmm_(left[first : first + step], right, alpha=adapter.scale)
        yield piece.to(dtype)
