"""The linear layers of a model's decoder, which are what a low-rank adapter changes.

Works on a model with or without its weights. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from engine.model_files.adapter_shape import ends_with, is_slim
from engine.models.core import find_core
from engine.models.quantize import QuantizedLinear, multiplies


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder layer.

    Attributes:
        name: its path in the model.
        rows: outputs.
        columns: inputs.
        layer: number of the decoder layer that it is part of.
        module: the layer itself.
        transposed: whether its weight is kept as [inputs, outputs] (GPT-2's).
    """

    name: str
    rows: int
    columns: int
    layer: int
    module: nn.Module
    transposed: bool = False

    @property
    def kind(self) -> str:
        """The last word of its path, which it shares with its likes in other layers: ``q_proj``."""
        return self.name.rpartition(".")[2]


def decoder_linears(model: PreTrainedModel) -> list[Linear]:
    """Every linear layer inside the decoder layers, in the model's order.

    Experts that are fused into one block of three dimensions are no linear layers and are not among them, nor are those
    that several layers share (Zamba's): two adapters cannot be merged into one weight.
    """
    found = find_core(model)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    shared = {*tied, *tied.values()}
    linears = []
    for path, module in found.layers.named_modules():
        name, layer = f"{found.layers_prefix}.{path}", int(path.partition(".")[0] or 0)
        if f"{name}.weight" in shared:
            continue
        if isinstance(module, QuantizedLinear):
            rows, columns = module.shape
            linears.append(Linear(name, rows, columns, layer, module, module.transposed))
        elif isinstance(module, Conv1D):
            columns, rows = module.weight.shape
            linears.append(Linear(name, rows, columns, layer, module, transposed=True))
        elif isinstance(module, nn.Linear) and multiplies(module):
            rows, columns = module.weight.shape
            linears.append(Linear(name, rows, columns, layer, module))
    return linears


def chosen(linears: Sequence[Linear], targets: Sequence[str]) -> list[Linear]:
    """The linear layers that an adapter changes: those that are named, or all but gates and routers."""
    if not targets:
        return [linear for linear in linears if not is_slim(linear.rows, linear.columns)]
    return [linear for linear in linears if ends_with(linear.name, targets)]
