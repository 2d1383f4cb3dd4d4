"""A whole model whose weights go from the file straight to where they will live, converted a piece at a time.

transformers makes a model in memory first, and callers that want its weights elsewhere (in a mapped file, in memory of
the process's own) has them twice for a moment. Here the model is built without weights, each parameter's place is asked
for, and the file is read into it. On the CPU only; knows nothing of training or files beside the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.monkey_patching import patch_output_recorders

from engine.errors import ModelError
from engine.models.checkpoint import Checkpoint
from engine.models.load import UNUSABLE, load_causal_lm, quiet
from engine.models.meta import build_on_meta, read_config
from engine.models.weight_plan import WeightPlan, plan_weights

NewTensor = Callable[[torch.Size, torch.dtype], Tensor]
"""Makes memory for one weight: contiguous, on the CPU, whatever is in it."""


def in_memory(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Memory of the process's own."""
    return torch.empty(shape, dtype=dtype)


def load_in_place(
    folder: Path, *, dtype: torch.dtype, new_tensor: NewTensor, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A causal language model on the CPU in evaluation mode, its parameters in memory that ``new_tensor`` makes.

    Memory beside the weights is a piece of a tensor. Where transformers converts what the files hold (experts saved one
    by one), it loads the model, and the weights are then moved.

    Args:
        folder: as written by ``save_pretrained``.
        dtype: that the weights are converted to.
        new_tensor: called once for each parameter; tied ones share theirs.
        trust_remote_code: whether code out of the folder may run.

    Raises:
        ModelError: transformers does not know the model, or the files do not fill it.
    """
    checkpoint: Checkpoint | None = None
    try:
        with quiet():
            checkpoint = Checkpoint(folder)
            config = read_config(folder, trust_remote_code=trust_remote_code)
            model = build_on_meta(config, dtype=dtype, trust_remote_code=trust_remote_code)
            plan = plan_weights(model, checkpoint, dtype)
            if any(recipe.converter is not None for recipe in plan.recipes.values()):
                raise ModelError("The files hold other tensors than the model.", "", "")  # caught below
            _fill(model, checkpoint, plan, new_tensor)
            finish(model, folder, dtype, plan)
    except (ModelError, *UNUSABLE):
        # Tensors that have to be converted (experts saved one by one), or no model at all: transformers decides, in the
        # usual words.
        model = load_causal_lm(folder, dtype=dtype, trust_remote_code=trust_remote_code)
        move_weights(model, new_tensor)
    finally:
        if checkpoint is not None:
            checkpoint.close()
    return model


@torch.no_grad()
def move_weights(model: PreTrainedModel, new_tensor: NewTensor) -> None:
    """Copy the parameters of a model on the CPU into memory that ``new_tensor`` makes, one after the other.

    What :func:`load_causal_lm` gives are mapped pages of the model's file. A weight that is trained becomes memory page
    by page anyway, when its page is first written: the embedding's when the text first names a row there, which may be
    hours after the start. A process that takes at once what it will need either fits at the start or never did.
    """
    for parameter in model.parameters():
        parameter.data = new_tensor(parameter.shape, parameter.dtype).copy_(parameter)


@torch.no_grad()
def _fill(model: PreTrainedModel, checkpoint: Checkpoint, plan: WeightPlan, new_tensor: NewTensor) -> None:
    placed: dict[str, Tensor] = {}
    for name, recipe in plan.recipes.items():
        (source,) = recipe.sources
        tensor = new_tensor(torch.Size(checkpoint.tensors[source].shape), plan.dtypes[name])
        checkpoint.read(source, tensor)
        placed[name] = place(model, name, tensor)
    for name, source in plan.tied.items():
        share(model, name, placed[source])


def finish(model: PreTrainedModel, folder: Path, dtype: torch.dtype, plan: WeightPlan) -> None:
    """Do what ``from_pretrained`` does beside the weights, so that the model is saved as it would be."""
    patch_output_recorders(model)
    model._weight_conversions = list(plan.used)
    model.config.dtype = dtype
    if model.can_generate():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except OSError:  # there is none; some models have it in their configuration
            model.generation_config = GenerationConfig.from_pretrained(
                folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
            )


def place(model: PreTrainedModel, name: str, tensor: Tensor) -> Tensor:
    """Put a tensor where a parameter or persistent buffer is, and return what stands there now."""
    module, leaf = _home(model, name)
    before = module._parameters.get(leaf)
    if before is None:
        module._buffers[leaf] = tensor
        return tensor
    module._parameters[leaf] = parameter = nn.Parameter(tensor, requires_grad=before.requires_grad)
    return parameter


def share(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    """Let a parameter or persistent buffer be a tensor that stands elsewhere in the model already."""
    module, leaf = _home(model, name)
    if isinstance(tensor, nn.Parameter):
        module._parameters[leaf] = tensor
    else:
        module._buffers[leaf] = tensor


def _home(model: PreTrainedModel, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf
