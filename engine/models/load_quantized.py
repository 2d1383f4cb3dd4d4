"""A whole model whose decoder layers' linear weights are quantised as they are read.

One tensor at a time is in memory as it was before it was quantised, so that a model is loaded in little more memory
than it takes afterwards. Knows nothing of training.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.models.checkpoint import Checkpoint
from engine.models.core import find_core
from engine.models.finite import check_numbers
from engine.models.load import quiet
from engine.models.load_in_place import finish, place, share
from engine.models.meta import build_on_meta, read_config
from engine.models.quantize import Method, swap_linear_layers
from engine.models.weight_plan import plan_weights


@torch.no_grad()
def load_quantized(
    folder: Path, method: Method, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A causal language model in evaluation mode, its decoder layers' linear weights in fewer bits.

    The numbers are those of a streamed model with the same quantization.

    Args:
        folder: as written by ``save_pretrained``.
        method: int8 or nf4.
        dtype: of the other weights, and what quantised ones are unpacked to.
        device: where the model is.
        trust_remote_code: whether code out of the folder may run.

    Raises:
        ModelError: transformers does not know the model, the files do not fill it, or a weight is no number.
    """
    checkpoint = Checkpoint(folder)
    try:
        with quiet():
            config = read_config(folder, trust_remote_code=trust_remote_code)
            model = build_on_meta(config, dtype=dtype, trust_remote_code=trust_remote_code)
        plan = plan_weights(model, checkpoint, dtype)
        core = find_core(model)
        swapped = {
            f"{core.layers_prefix}.{name}.weight": module
            for name, module in swap_linear_layers(core.layers, method).items()
        }
        placed: dict[str, Tensor] = {}
        for recipe in {id(recipe): recipe for recipe in plan.recipes.values()}.values():
            wanted = plan.dtypes[recipe.targets[0]]

            def read(source: str, wanted: torch.dtype = wanted) -> Tensor:
                tensor = torch.empty(checkpoint.tensors[source].shape, dtype=wanted)
                checkpoint.read(source, tensor)
                return tensor

            for name, tensor in recipe.convert(model, read).items():
                check_numbers([(name, tensor)], folder)
                if (layer := swapped.get(name)) is not None:
                    layer.codes, layer.scales = layer.pack(tensor.to(device))
                else:
                    placed[name] = place(model, name, tensor.to(device))
        for name, source in plan.tied.items():
            if name not in swapped:
                share(model, name, placed[source])
        with quiet():
            finish(model, folder, dtype, plan)
    finally:
        checkpoint.close()
    return model.to(device)
