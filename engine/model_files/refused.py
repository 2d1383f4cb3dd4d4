"""Folders that are no causal language model that can be read: each refused with its reason and with what helps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from engine.errors import ModelError, shown_value
from engine.model_files.headers import TensorInfo, check_link, read_json
from engine.model_files.hub import cached_folder, is_hub_id
from engine.model_files.known import causal_lm_types, masked_lm_types
from engine.model_files.python_line import path_literal, python_line

# Types of causal models whose forward pass is not one from each token to its hidden state.
_NOT_FOR_ROWS = {
    "prophetnet": "it predicts several tokens at each position, in rows of its own for each",
    "reformer": "it trains on rows of certain lengths alone, and hashes tokens into buckets by chance",
    "blt": "it reads bytes in patches, which a model of its own cuts",
    "moshi": "it reads and writes sound beside the text, a token of each at a time",
    "gemma4_assistant": "it continues from the hidden states of the model that it drafts for",
    "gemma4_unified_assistant": "it continues from the hidden states of the model that it drafts for",
}

_COUNTS_OF_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")

# Classes of causal language models whose names do not end in the usual words.
_CAUSAL_BY_OTHER_NAMES = ("BertGenerationDecoder",)

# How quantised weights are stored: whole numbers, with their scales beside them.
_WHOLE = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
_SCALES = ("scales", "weight_scale", "weight_scale_inv", "absmax", "weight.absmax", "qzeros", "SCB")


def read_config(folder: Path, asked: str) -> dict[str, Any]:
    """Return a model's config.json.

    Args:
        folder: the model's.
        asked: the folder or id that was asked for.

    Raises:
        ModelError: there is none, or a key that everything depends on has a value of the wrong kind.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise _no_config(folder, asked)
    config = read_json(path)
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise ModelError(
            f"{path} does not say which model_type it is.", "", "Name a folder as written by save_pretrained()."
        )
    for name, kind, told in (
        ("architectures", list, "a list of names"),
        ("auto_map", dict, "an object"),
        ("quantization_config", dict, "an object"),
        ("tie_word_embeddings", bool, "true or false"),
    ):
        value = config.get(name)
        if value is not None and not isinstance(value, kind):
            raise ModelError(
                f"{path} says {name} = {shown_value(value)}.",
                f"It must be {told}.",
                "Download or save the model again.",
            )
    return config


def check_causal_lm(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> None:
    """Raise ModelError unless config.json describes a causal language model of transformers, or of trusted code."""
    architectures = [str(name) for name in config.get("architectures") or []]
    named = architectures[0] if architectures else config["model_type"]
    todo = "Choose a model whose architecture ends in ForCausalLM or LMHeadModel."
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"The model in {folder} ({named}) is an encoder-decoder.", "Only causal language models can be used.", todo
        )
    causal = any("CausalLM" in name or "LMHead" in name or name in _CAUSAL_BY_OTHER_NAMES for name in architectures)
    if (why := _NOT_FOR_ROWS.get(config["model_type"])) is not None:
        raise ModelError(f"The model in {folder} ({named}) cannot be used: {why}.", "", "Choose another model.")
    known = causal_lm_types()
    text = config.get("text_config")
    if isinstance(text, dict) and not (causal and any(config.get(name) for name in _COUNTS_OF_LAYERS)):
        is_known = known is None or text.get("model_type", "llama") in known
        raise ModelError(
            f"The model in {folder} ({named}) wraps a text model together with others: its text_config describes it.",
            "Only the text model can be used, and it has to be a model of its own."
            if is_known
            else f"Only the text model could be used, and transformers has none of its own for {named}.",
            f"Save it once, and name {folder}-text: {_save_text_model(folder)}"
            if is_known
            else "Choose another model.",
        )
    if architectures and not causal:
        raise ModelError(f"The model in {folder} ({named}) is not a causal language model.", "", todo)
    if known is not None and config["model_type"] not in known:
        brings_code = "AutoModelForCausalLM" in (config.get("auto_map") or {})
        if brings_code and not trust_remote_code:
            raise ModelError(
                f"The model in {folder} ({config['model_type']}) is not part of transformers: it brings its own code.",
                "That code would run with your rights.",
                "Read it, and give --trust_remote_code if you trust it.",
            )
        if not brings_code:
            raise ModelError(
                f"The model in {folder} ({shown_value(config['model_type'])}) is not a causal language model that "
                "transformers has.",
                "",
                "Choose another model, or install a newer transformers if the model is newer.",
            )
    if _sees_both_sides(config):
        is_masked = config["model_type"] in (masked_lm_types() or ())
        raise ModelError(
            f"The model in {folder} ({named}) is {'a masked' if is_masked else 'no causal'} language model: it sees "
            "the tokens on both sides.",
            "A record describes the next token, which only a causal language model predicts.",
            todo,
        )


def _sees_both_sides(config: dict[str, Any]) -> bool:
    """Whether config.json says so; :mod:`engine.models.causal` asks the model itself."""
    kind = config["model_type"]
    if kind in ("xlm", "xlnet", "cpmant"):
        return not (config.get("causal") is True or config.get("attn_type") == "uni")
    if kind in (masked_lm_types() or ()) or kind in ("bert-generation", "reformer"):
        return config.get("is_decoder") is not True
    return config.get("use_bidirectional_attention") in (True, "all") or config.get("is_causal") is False


def _save_text_model(folder: Path) -> str:
    """A command that saves the text model of a wrapper with its tokenizer."""
    source, out = path_literal(folder), path_literal(f"{folder}-text")
    code = (
        "from transformers import AutoModelForImageTextToText as V, AutoModelForCausalLM as M, AutoTokenizer as T\n"
        f'v = V.from_pretrained({source}, dtype="auto"); t = M.from_config(v.config.get_text_config(), dtype=v.dtype); '
        "t.base_model.load_state_dict(v.model.language_model.state_dict()); "
        "t.get_output_embeddings().load_state_dict(v.get_output_embeddings().state_dict()); "
        f"t.save_pretrained({out}); T.from_pretrained({source}).save_pretrained({out})"
    )
    return python_line(code)


def _no_config(folder: Path, asked: str) -> ModelError:
    """A folder without a config.json: the model that may be meant is named."""
    check_link(folder / "config.json")
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6])
    cached = cached_folder(asked)
    if cached is not None:
        return ModelError(
            f"The folder {folder} has no config.json.",
            f"It hides the model {asked} in the Hugging Face cache.",
            f"Remove or rename the folder, or name the model by its place: {cached}",
        )
    if not there and is_hub_id(asked):
        return ModelError(
            f"The folder {folder} is empty.",
            f"It hides the model {asked}, which is looked for on Hugging Face only where no folder has its name.",
            "Remove or rename the folder.",
        )
    models = sorted(
        {path.parent for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(f"{pattern}/config.json")}
    )
    if models:
        # The last checkpoint, or the snapshot that was downloaded last.
        best = max(models, key=lambda path: (_last_number(path.name), path.stat().st_mtime))
        more = f" It holds {len(models)} models." if len(models) > 1 else ""
        return ModelError(f"{folder} has no config.json.", f"There is {there}.{more}", f"Try {best}.")
    return ModelError(
        f"{folder} has no config.json.",
        f"There is {there or 'nothing'}.",
        "Name a folder as written by save_pretrained(), or a Hugging Face id.",
    )


def _last_number(name: str) -> int:
    match = re.search(r"-(\d{1,18})$", name)
    return int(match[1]) if match else -1


def check_not_quantised(folder: Path, config: dict[str, Any]) -> None:
    """Raise ModelError where config.json names a layout that :mod:`engine.model_files.quantised` does not read."""
    told = config.get("quantization_config")
    if isinstance(told, dict):
        raise _quantised(folder, config, str(told.get("quant_method", "an unnamed method")))
    mlx = config.get("quantization")
    if isinstance(mlx, dict) and "bits" in mlx:
        raise _quantised(folder, config, f"MLX, {shown_value(mlx['bits'])} bits")


def check_not_packed(folder: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]) -> None:
    """Weights as whole numbers beside their scales are quantised, whether config.json says so or not."""
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        packed = last in ("weight", "qweight", "weight_packed") and tensor.dtype in _WHOLE and len(tensor.shape) > 1
        if packed and any(f"{stem}.{scale}" in tensors for scale in _SCALES):
            how = "MLX's form" if f"{stem}.biases" in tensors else f"{name} is {tensor.dtype}, beside its scales"
            raise _quantised(folder, config, how)
    for name, tensor in tensors.items():
        is_matrix = name.endswith(".weight") and len(tensor.shape) > 1
        if is_matrix and (tensor.dtype in _WHOLE or tensor.dtype.startswith("F8")):
            raise _quantised(folder, config, f"{name} is {tensor.dtype}, without scales")


def _quantised(folder: Path, config: dict[str, Any], how: str) -> ModelError:
    original = config.get("_name_or_path")
    named = isinstance(original, str) and is_hub_id(original) and original != folder.name
    return ModelError(
        f"The weights in {folder} are already quantised ({how}).",
        "Float weights can be read, and the layouts of FP8, compressed-tensors, GPTQ, AWQ, MXFP4 and bitsandbytes.",
        f"Use the model they were made from{f' ({original})' if named else ''}; --quantization int8 or nf4 saves the "
        "memory while it runs.",
    )
