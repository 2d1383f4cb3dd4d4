"""Description of a model's folder without loading it: shape from config.json, tensors from the safetensors headers.

    spec = read_spec("path/to/model")       # or a Hugging Face id that is in the local cache
    spec.num_layers, spec.vocab_size, spec.layer_parameters

This takes milliseconds for a model of any size. config.json is compared with the tensors: a folder that
contradicts itself is refused here, before anything is planned. Knows nothing of torch or transformers, and not what a
layer computes: layers are found by their numbered names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import ModelError, shown_value
from engine.model_files.descriptions import Descriptions, entries
from engine.model_files.headers import DTYPES, TensorInfo, read_json
from engine.model_files.hub import cached_folder, is_hub_id, resolve_model
from engine.model_files.known import causal_lm_types, masked_lm_types
from engine.model_files.on_disk import name_of
from engine.model_files.python_line import path_literal, python_line
from engine.model_files.weight_files import model_of, read_tensors, settings_of

# The same quantity under the names that different families give it in config.json.
_SYNONYMS = {
    # The decoder of a model that had an encoder once (BART's) comes first: there, other words count the encoder.
    "num_layers": (
        *("decoder_layers", "num_decoder_layers"),
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    ),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "emb_dim"),
    "num_heads": (
        *("decoder_attention_heads", "num_decoder_attention_heads"),
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
    ),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "intermediate_size": ("decoder_ffn_dim", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_inner"),
    "head_dim": ("head_dim",),
    "max_positions": ("max_target_positions", "max_position_embeddings", "n_positions", "max_seq_len"),
}
# Families that number positions from the padding's id on: the first rows of their table are never used.
_POSITIONS_AFTER_PADDING = (
    *("roberta", "roberta-prelayernorm", "camembert", "xlm-roberta", "xlm-roberta-xl", "data2vec-text", "xmod"),
)

# Settings of models that use their layers several times in a pass; their num_hidden_layers counts each use.
_LOOPS = ("n_recurrent_loops", "loop_num_passes", "H_cycles")

# Types of causal models whose forward pass is not one from each token to its hidden state.
_NOT_FOR_ROWS = {
    "prophetnet": "it predicts several tokens at each position, in rows of its own for each",
    "reformer": "it trains on rows of certain lengths alone, and hashes tokens into buckets by chance",
}

# Classes of causal language models whose names do not end in the usual words.
_CAUSAL_BY_OTHER_NAMES = ("BertGenerationDecoder",)

# Larger than any size in a model; some files say 1e30 for "no limit" of a tokenizer, never for these.
_MOST = 2**40

# How quantised weights are stored: whole numbers, with their scales beside them.
_WHOLE = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
_SCALES = ("scales", "weight_scale", "weight_scale_inv", "absmax", "weight.absmax", "qzeros", "SCB")

# Buffers in old checkpoints: causal masks and rotary tables.
_BUFFER = re.compile(r"(rotary_emb\.inv_freq|masked_bias|attn\.bias|attention\.bias)$")


@dataclass(frozen=True)
class ModelSpec:
    """A causal language model, described. All counts are of parameters as they are in the files.

    Attributes:
        vocab_size: rows of the embedding; the tokenizer may produce fewer ids.
        num_parameters: tied embeddings counted once; the sum of the four groups below.
        layer_parameters: parameters of each decoder layer.
        head_parameters: 0 where the head is the embedding.
        other_parameters: final norm, learned positions and the like.
        max_positions: longest sequence, None where there is no limit.
        dtype: that of most parameters.
        layers_prefix: what the names of the decoder layers begin with, as in ``model.layers``.
        trust_remote_code: the user's word on whether Python code out of its folder may run.
    """

    path: Path
    name: str
    model_type: str
    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    max_positions: int | None
    dtype: str
    num_parameters: int
    file_bytes: int
    layer_parameters: list[int]
    embedding_parameters: int
    head_parameters: int
    other_parameters: int
    layers_prefix: str
    tensors: dict[str, TensorInfo] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    trust_remote_code: bool = False

    @property
    def runs_own_code(self) -> bool:
        """Whether Python code out of its folder makes the model, and may."""
        return self.trust_remote_code and bool(self.config.get("auto_map"))


_kept: Descriptions[ModelSpec] = Descriptions(32)


def read_spec(path_or_id: str | Path, *, trust_remote_code: bool = False) -> ModelSpec:
    """Describe a model from its config.json and the headers of its weight files; once, while they stay as they are.

    Args:
        path_or_id: a folder, a GGUF file, or a Hugging Face id whose files are in the local cache.
        trust_remote_code: whether a model that needs code out of its own folder is accepted.

    Raises:
        ModelError: there is no such model, it is not a causal LM, its weights are in another format, a file is
            damaged or missing, or config.json and the files contradict each other.
    """
    folder = resolve_model(path_or_id)
    key = (str(path_or_id), folder, trust_remote_code)
    return _kept.of(key, lambda: _read(path_or_id, folder, trust_remote_code), _files)


def _files(spec: ModelSpec) -> set[Path]:
    """The files that a description was made from."""
    stored = {each.file for tensor in spec.tensors.values() for each in (tensor, *tensor.made_of)}
    return entries(spec.path) | stored


def _read(path_or_id: str | Path, folder: Path, trust_remote_code: bool) -> ModelSpec:
    config = _read_config(folder, str(path_or_id))
    _check_not_quantised(folder, config)
    _check_causal_lm(folder, config, trust_remote_code)
    tensors = read_tensors(folder)
    _check_not_packed(folder, config, tensors)
    parameters = {name: tensor for name, tensor in tensors.items() if not _is_buffer(name, tensor)}

    num_layers = None if any(config.get(key) for key in _LOOPS) else _num_layers(folder, config)
    hidden_size = _number(folder, config, "hidden_size")
    num_heads = _number(folder, config, "num_heads", default=1)
    head_dim = _number(folder, config, "head_dim", default=max(1, hidden_size // num_heads))
    vocab_size = config.get("vocab_size")
    prefix, layers = _layers(folder, parameters, num_layers, config)
    num_layers = len(layers)
    outside = {name: tensor for name, tensor in parameters.items() if not name.startswith(f"{prefix}.")}
    embedding, head = _embedding_and_head(folder, outside, vocab_size)
    _check_width(folder, config, hidden_size, embedding, outside[embedding])
    tied = _is_tied(folder, config, head)
    embedding_parameters = outside[embedding].numel
    head_parameters = outside[head].numel if head and not tied else 0
    num_parameters = sum(tensor.numel for tensor in parameters.values())
    if head and tied:
        num_parameters -= outside[head].numel

    return ModelSpec(
        path=folder,
        name=_name(path_or_id),
        model_type=config["model_type"],
        architecture=(config.get("architectures") or [""])[0],
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=_number(folder, config, "intermediate_size", default=4 * hidden_size),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(folder, config, num_heads),
        head_dim=head_dim,
        vocab_size=outside[embedding].shape[0],
        tied_embeddings=tied,
        max_positions=_max_positions(folder, config),
        dtype=_common_dtype(parameters),
        num_parameters=num_parameters,
        file_bytes=sum(file.stat().st_size for file in {tensor.file for tensor in tensors.values()}),
        layer_parameters=layers,
        embedding_parameters=embedding_parameters,
        head_parameters=head_parameters,
        other_parameters=num_parameters - sum(layers) - embedding_parameters - head_parameters,
        layers_prefix=prefix,
        tensors=tensors,
        config=config,
        trust_remote_code=trust_remote_code,
    )


def _num_layers(folder: Path, config: dict[str, Any]) -> int:
    kinds = config.get("layers_block_type")  # NemotronH as transformers 5 writes it: the list alone tells how many
    counted = len(kinds) if kinds and isinstance(kinds, list) else None
    return _number(folder, config, "num_layers", default=counted)


def fingerprint(spec: ModelSpec) -> str:
    """Return the fingerprint of this model's weights, 32 hexadecimal digits.

    Made from config.json, the name, shape and dtype of each tensor, and three samples of each tensor's bytes: training
    moves every tensor, so a fine-tuned copy has another fingerprint. The same weights in other files have the same one.
    """
    digest = hashlib.blake2b(digest_size=16)
    told = {key: value for key, value in spec.config.items() if key not in ("transformers_version", "_name_or_path")}
    digest.update(json.dumps(told, sort_keys=True).encode())
    file, descriptor = Path(), -1  # one file at a time: a model may have more shards than a process may have open
    try:
        told_tensors = [
            (name, each) for name, tensor in sorted(spec.tensors.items()) for each in (tensor, *tensor.made_of)
        ]
        for name, tensor in told_tensors:
            if tensor.file != file:
                if descriptor >= 0:
                    os.close(descriptor)
                    descriptor = -1
                file, descriptor = tensor.file, os.open(tensor.file, os.O_RDONLY | os.O_CLOEXEC)
            stored = (tensor.stored_as or tensor.dtype) if tensor.decoder is None else tensor.decoder.name
            digest.update(f"{name} {tensor.shape} {stored}".encode())
            for place in (0, tensor.nbytes // 2, max(0, tensor.nbytes - 256)):
                length = min(256, tensor.nbytes - place)
                digest.update(os.pread(descriptor, length, tensor.offset + place))
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return digest.hexdigest()


def _read_config(folder: Path, asked: str) -> dict[str, Any]:
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


def _check_causal_lm(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> None:
    architectures = [str(name) for name in config.get("architectures") or []]
    named = architectures[0] if architectures else config["model_type"]
    todo = "Choose a model whose architecture ends in ForCausalLM or LMHeadModel."
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"The model in {folder} ({named}) is an encoder-decoder.", "Only causal language models can be used.", todo
        )
    causal = any("CausalLM" in name or "LMHead" in name or name in _CAUSAL_BY_OTHER_NAMES for name in architectures)
    if not causal and isinstance(config.get("text_config"), dict):
        raise ModelError(
            f"The model in {folder} ({named}) wraps a text model together with others: its text_config describes it.",
            "Only the text model can be used, and it has to be a model of its own.",
            f"Save it once, and name {folder}-text: {_save_text_model(folder)}",
        )
    if architectures and not causal:
        raise ModelError(f"The model in {folder} ({named}) is not a causal language model.", "", todo)
    known = causal_lm_types()
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
    if (why := _NOT_FOR_ROWS.get(config["model_type"])) is not None:
        raise ModelError(f"The model in {folder} ({named}) cannot be used: {why}.", "", "Choose another model.")
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


def _check_not_quantised(folder: Path, config: dict[str, Any]) -> None:
    told = config.get("quantization_config")
    if isinstance(told, dict):
        raise _quantised(folder, config, str(told.get("quant_method", "an unnamed method")))
    mlx = config.get("quantization")
    if isinstance(mlx, dict) and "bits" in mlx:
        raise _quantised(folder, config, f"MLX, {shown_value(mlx['bits'])} bits")


def _check_not_packed(folder: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]) -> None:
    """Weights as whole numbers beside their scales are quantised, whether config.json says so or not."""
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        packed = last in ("weight", "qweight", "weight_packed") and tensor.dtype in _WHOLE and len(tensor.shape) > 1
        if packed and any(f"{stem}.{scale}" in tensors for scale in _SCALES):
            how = "MLX's form" if f"{stem}.biases" in tensors else f"{name} is {tensor.dtype}, beside its scales"
            raise _quantised(folder, config, how)


def _quantised(folder: Path, config: dict[str, Any], how: str) -> ModelError:
    original = config.get("_name_or_path")
    named = isinstance(original, str) and is_hub_id(original) and original != folder.name
    return ModelError(
        f"The weights in {folder} are already quantised ({how}).",
        "Only float weights can be read.",
        f"Use the model they were made from{f' ({original})' if named else ''}; --quantization int8 or nf4 saves the "
        "memory while it runs.",
    )


_NAME_ONE = "Name a causal language model's folder."


def _number(folder: Path, config: dict[str, Any], quantity: str, default: int | None = None) -> int:
    for name in _SYNONYMS[quantity]:
        value = config.get(name)
        if isinstance(value, list) and value and quantity in ("num_heads", "num_kv_heads", "intermediate_size"):
            value = max(value) if all(type(entry) is int for entry in value) else value  # one for each layer
        if value is None:
            continue
        if type(value) is not int or not 0 < value < _MOST:
            raise ModelError(
                f"{settings_of(folder)} says {name} = {shown_value(value)}.",
                "It must be a whole number above 0.",
                "Download or save the model again.",
            )
        return value
    if default is None:
        raise ModelError(
            f"{settings_of(folder)} does not say {_SYNONYMS[quantity][0]}.",
            "",
            "Name a folder as written by save_pretrained().",
        )
    return default


def _max_positions(folder: Path, config: dict[str, Any]) -> int | None:
    told = _number(folder, config, "max_positions", default=0)
    pad = config.get("pad_token_id")
    if told and config["model_type"] in _POSITIONS_AFTER_PADDING and isinstance(pad, int):
        return max(1, told - pad - 1)
    lengths = [length for length in (told, _short_length(config)) if length]
    return min(lengths) if lengths else None


def _short_length(config: dict[str, Any]) -> int | None:
    """Longest text with the short factors of LongRoPE; None without such factors.

    transformers chooses between two sets of factors by the longest row of a batch. Beyond this length a text's record
    would depend on the texts beside it.
    """
    for key in ("rope_parameters", "rope_scaling"):
        settings = config.get(key)
        if not isinstance(settings, dict):
            continue
        for rope in (settings, *(entry for entry in settings.values() if isinstance(entry, dict))):
            if (rope.get("rope_type") or rope.get("type")) in ("longrope", "su"):
                length = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
                return length if isinstance(length, int) and length > 0 else None
    return None


def _num_kv_heads(folder: Path, config: dict[str, Any], num_heads: int) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1  # Falcon and GPTBigCode
    return _number(folder, config, "num_kv_heads", default=num_heads)


def _is_buffer(name: str, tensor: TensorInfo) -> bool:
    if tensor.dtype not in DTYPES.values():
        return True
    return bool(_BUFFER.search(name)) and (len(tensor.shape) != 1 or "inv_freq" in name)


def _layers(
    folder: Path, parameters: dict[str, TensorInfo], num_layers: int | None, config: dict[str, Any]
) -> tuple[str, list[int]]:
    """The numbered list with most parameters of those as long as told: its prefix, and the parameters of each entry."""
    lists: dict[str, Counter[int]] = {}
    for name, tensor in parameters.items():
        match = re.match(r"(.+?)\.(\d+)\.", name)
        if match:
            lists.setdefault(match[1], Counter())[int(match[2])] += tensor.numel
    if not lists:
        raise ModelError(f"The files of {model_of(folder)} hold no decoder layers.", "", _NAME_ONE)
    # A tower for pictures may be larger than the decoder.
    prefix = max(lists, key=lambda name: (len(lists[name]) == num_layers, lists[name].total()))
    found = lists[prefix]
    num_layers = len(found) if num_layers is None else num_layers
    # Layers past the last are multi-token-prediction heads (DeepSeek-V3), which transformers leaves out too.
    extra = max(found) >= num_layers and not config.get("num_nextn_predict_layers")
    if extra or any(index not in found for index in range(num_layers)):
        raise ModelError(
            f"{settings_of(folder)} says {num_layers} layers, the files hold {len(found)} ({prefix}).",
            "Layers would be missing or randomly initialised.",
            "Download or save the model again.",
        )
    return prefix, [found[index] for index in range(num_layers)]


def _embedding_and_head(folder: Path, outside: dict[str, TensorInfo], vocab_size: object) -> tuple[str, str | None]:
    """Names of the embedding and, where the file has one of its own, of the head's weight."""
    tables = {name: tensor for name, tensor in outside.items() if len(tensor.shape) == 2}
    heads = [name for name in tables if re.search(r"(lm_head|embed_out|output|head|decoder)\.weight$", name)]
    positions = [name for name in tables if re.search(r"pos|wpe", name)]
    of_vocabulary = [
        name for name, tensor in tables.items() if tensor.shape[0] == vocab_size and name not in (*heads, *positions)
    ]
    if of_vocabulary:
        return of_vocabulary[0], next((name for name in heads if tables[name].shape[0] == vocab_size), None)
    wordy = [name for name in tables if re.search(r"emb|wte", name) and name not in positions]
    if wordy:
        rows = tables[wordy[0]].shape[0]
        raise ModelError(
            f"{settings_of(folder)} says vocab_size = {vocab_size}, but {wordy[0]} has {rows} rows.",
            "Token ids would mean something else.",
            "Download or save the model again.",
        )
    raise ModelError(f"The files of {model_of(folder)} hold no token embedding.", "", _NAME_ONE)


def _check_width(folder: Path, config: dict[str, Any], hidden_size: int, name: str, embedding: TensorInfo) -> None:
    """The embedding is as wide as the model, or as one of the other widths that config.json names (OPT, factorised)."""
    width = embedding.shape[1]
    if width != hidden_size and width not in config.values():
        raise ModelError(
            f"{settings_of(folder)} says hidden_size = {hidden_size}, but {name} is {width} wide.",
            "The weights belong to another model.",
            "Download or save the model again.",
        )


def _is_tied(folder: Path, config: dict[str, Any], head: str | None) -> bool:
    told = config.get("tie_word_embeddings")
    if told is False and head is None:
        raise ModelError(
            f"{settings_of(folder)} says that the head is not the embedding, but the files hold no head.",
            "It would be randomly initialised.",
            "Save the model with its head (AutoModelForCausalLM, not AutoModel).",
        )
    return bool(told) if told is not None else head is None


def _common_dtype(parameters: dict[str, TensorInfo]) -> str:
    bytes_of: Counter[str] = Counter()
    for tensor in parameters.values():
        bytes_of[tensor.dtype] += tensor.value_bytes
    return bytes_of.most_common(1)[0][0]


def _name(path_or_id: str | Path) -> str:
    path = Path(path_or_id).expanduser()
    if path.is_file():
        return name_of(path)
    return path.resolve().name if path.is_dir() else str(path_or_id)
