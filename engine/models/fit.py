"""Can these files become the model that config.json describes? Asked of the headers, before any weight is read.

The model is built without weights, and each of its parameters must have a tensor of its shape in the files. It takes a
second and the memory of the libraries, where loading the model would take minutes to come to the same answer. Knows
nothing of what the model is for.
"""

from __future__ import annotations

from pathlib import Path

import torch

from engine.errors import ModelError
from engine.models.checkpoint import Checkpoint
from engine.models.load import UNUSABLE, first_sentence, quiet
from engine.models.meta import build_on_meta, read_config
from engine.models.weight_plan import plan_weights
from engine.out_of_memory import is_out_of_memory


def check_fit(folder: Path) -> None:
    """Make sure that a model of transformers can be loaded from a folder and that nothing of it would be made up.

    Raises:
        ModelError: transformers cannot build it, or a tensor is missing or has another shape.
    """
    checkpoint = Checkpoint(folder)
    try:
        with quiet():
            model = build_on_meta(read_config(folder), dtype=torch.float32)
            plan = plan_weights(model, checkpoint, torch.float32)
    except (*UNUSABLE, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"The model in {folder} cannot be built: {first_sentence(error)}",
            "config.json says something that transformers cannot follow.",
            "Download or save the model again.",
        ) from error
    whole = [
        source
        for name, parameter in model.named_parameters()
        if name in plan.recipes and parameter.is_floating_point()
        for source in plan.recipes[name].sources
        if not checkpoint.dtype(source).is_floating_point
    ]
    if whole:
        raise ModelError(
            f"{whole[0]} in {folder} holds whole numbers ({checkpoint.tensors[whole[0]].dtype}).",
            "Quantised weights mean something else than their numbers say.",
            "Use the model's unquantised weights.",
        )
