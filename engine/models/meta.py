"""A transformers model without weights: parameters on the meta device, buffers real.

A plain ``torch.device("meta")`` build leaves rotary tables, causal masks and embedding scales without values, and
``to_empty`` fills them with garbage without a word. transformers' own loading computes exactly these again, and so does
this file, with the same internal calls (5.21 and newer). It does not know how weights are read.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights, no_tie_weights
from transformers.modeling_utils import local_torch_dtype
from transformers.models.auto.auto_factory import _get_model_class
from transformers.utils.generic import ContextManagers

from engine.errors import ModelError
from engine.machine.products import use_products


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration, as ``from_pretrained`` would use it.

    A padding token without a row in the embedding is none: transformers refuses to build such a model, though padding
    changes nothing that it computes. Fine-tuned models have one where a token was added and the embedding was not.

    Raises:
        ModelError: config.json is missing, or names an architecture that transformers does not have.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The configuration of the model in {folder} cannot be used: {str(error).splitlines()[0]}",
            "",
            "Check that it is a model folder, and that transformers is new enough for it.",
        ) from error
    pad, rows = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if isinstance(pad, int) and isinstance(rows, int) and not -rows <= pad < rows:
        config.pad_token_id = None
    return config


def build_on_meta(config: PretrainedConfig, *, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model for a configuration, in eval mode, with no weights in memory.

    Args:
        config: as read by :func:`read_config`.
        dtype: of the parameters once they are loaded.
        trust_remote_code: use the model's own code where the configuration names some.

    Returns:
        The model: parameters and persistent buffers on meta, other buffers computed, on the CPU.

    Raises:
        ModelError: the configuration is of no causal language model.
    """
    model_class = causal_lm_class(config, trust_remote_code=trust_remote_code)
    with ContextManagers(model_class.get_init_context(dtype, False, False, None)):
        model = model_class(config)
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True  # weights and persistent buffers come from the checkpoint
    model._move_missing_keys_from_meta_to_device(set(), None, None, None)
    model.initialize_weights()
    leave_weights_alone(model)
    use_products(model)
    return model.eval()


def leave_weights_alone(model: PreTrainedModel) -> None:
    """Keep RWKV from halving its weights every few layers in evaluation, and its hidden states with them.

    It is meant for fp16 alone and changes no result but by rounding. Weights that are read one layer at a time, or
    saved after an evaluation, would be halved or not by chance.
    """
    if getattr(model.config, "rescale_every", 0):
        model.config.rescale_every = 0


def build_with_buffers(
    model_class: type[PreTrainedModel], config: PretrainedConfig, *, dtype: torch.dtype
) -> PreTrainedModel:
    """A model built on the CPU, its parameters allocated but never written.

    Untouched pages take no memory, so this is cheap for a model of a few layers. Its buffers are those that the model's
    own ``__init__`` computes: what :func:`build_on_meta` is compared with.
    """
    with ContextManagers([local_torch_dtype(dtype, model_class.__name__), no_init_weights(), no_tie_weights()]):
        model = model_class(config).eval()
    use_products(model)
    return model


def causal_lm_class(config: PretrainedConfig, *, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """The class that ``AutoModelForCausalLM`` would make of this configuration.

    Raises:
        ModelError: there is none, or it is code that comes with the model and was not allowed.
    """
    auto_map = getattr(config, "auto_map", None) or {}
    if "AutoModelForCausalLM" in auto_map and trust_remote_code:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module  # only for models with own code

        found: type[PreTrainedModel] = get_class_from_dynamic_module(
            auto_map["AutoModelForCausalLM"], config._name_or_path
        )
        return found
    try:
        return _get_model_class(config, AutoModelForCausalLM._model_mapping)
    except KeyError:
        raise ModelError(
            f"{config._name_or_path or 'The model'} ({config.model_type}) is not a causal LM in transformers.",
            "Distillation scores the next token, which only such a model predicts.",
            "Use another teacher, or --trust_remote_code if the model brings its own code and you have read it.",
        ) from None
