"""Check that a folder's files form the model that config.json describes, from the headers alone.

The model is built without weights, and each of its parameters must have a tensor of its shape in the files. This takes
a second and the memory of the libraries; loading the model would take minutes for the same answer. Knows nothing of the
model's use.
"""

from __future__ import annotations

from pathlib import Path

import torch

from engine.errors import ModelError
from engine.machine.out_of_memory import is_out_of_memory
from engine.models.checkpoint import Checkpoint
from engine.models.load import UNUSABLE, first_sentence, quiet
from engine.models.meta import build_on_meta, read_config
from engine.models.weight_plan import plan_weights


def check_fit(folder: Path) -> list[str]:
    """Check that transformers can load a model from a folder without randomly initialised weights.

    Returns:
        The tensors in the files that its parameters are made of.

    Raises:
        ModelError: transformers cannot build it, or a tensor is missing or has another shape.
    """
    checkpoint = Checkpoint(folder)
    try:
        with quiet():
            model = build_on_meta(
                read_config(folder, trust_remote_code=False), dtype=torch.float32, trust_remote_code=False
            )
            plan = plan_weights(model, checkpoint, torch.float32)
    except (*UNUSABLE, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"The model in {folder} cannot be built: {first_sentence(error)}",
            "config.json says something that transformers cannot follow.",
            "Download or save the model again.",
        ) from error
    sources = [
        source
        for name, parameter in model.named_parameters()
        if name in plan.recipes and parameter.is_floating_point()
        for source in plan.recipes[name].sources
    ]
    whole = [source for source in sources if not checkpoint.dtype(source).is_floating_point]
    if whole:
        raise ModelError(
            f"{whole[0]} in {folder} holds whole numbers ({checkpoint.tensors[whole[0]].dtype}).",
            "Quantised weights mean something else than their numbers say.",
            "Use the model's unquantised weights.",
        )
    return sources
