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
from engine.model_files.headers import DTYPES, TensorInfo
from engine.model_files.hub import resolve_model
from engine.model_files.on_disk import name_of
from engine.model_files.refused import check_causal_lm, check_not_packed, check_not_quantised, read_config
from engine.model_files.weight_files import model_of, read_tensors, settings_of
from engine.model_files.wrapped_names import check_not_wrapped

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

# Larger than any size in a model; some files say 1e30 for "no limit" of a tokenizer, never for these.
_MOST = 2**40

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
    config = read_config(folder, str(path_or_id))
    check_not_quantised(folder, config)
    check_causal_lm(folder, config, trust_remote_code)
    tensors = read_tensors(folder)
    check_not_packed(folder, config, tensors)
    check_not_wrapped(Path(model_of(folder)), tensors)
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
    kinds = config.get("layers_block_type")  # NemotronH as transformers 5 writes it: the list alone has their number
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
