"""A model folder for a GGUF file: config.json, tokenizer and chat template from its header, without weights.

The weights stay in the GGUF file and are dequantised tensor by tensor as they are read
(:mod:`engine.model_files.gguf.values`). :mod:`engine.model_files.stand_in` chooses the folder's place. Knows
nothing of torch or transformers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ModelError, shown_value
from engine.model_files.gguf.architectures import Architecture, Facts, llama3_scaling, model_type_of
from engine.model_files.gguf.experts import READABLE, SHARED_GATE, experts_of, model_type_of_mixture
from engine.model_files.gguf.find import KIND
from engine.model_files.gguf.header import Header, StoredTensor, parts_of, read_header, type_name
from engine.model_files.gguf.tokenizer import special_ids, write_tokenizer
from engine.model_files.gguf.values import GgufValues, can_dequantize, dequantize
from engine.model_files.headers import TensorInfo, read_json
from engine.model_files.stand_in import stand_in

_CONFIG = "config.json"
# Tensors whose shapes give numbers of the configuration.
_OF_CONFIG = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_PLAIN = ("F32", "F16", "BF16")
_DTYPES = {"F32": "float32", "F64": "float32", "F16": "float16", "BF16": "bfloat16"}


def folder_of_gguf(file: Path) -> Path:
    """The folder that stands for a GGUF file; made where it is not there yet.

    Raises:
        ModelError: the file is damaged, or its architecture, tokenizer or types cannot be read.
    """
    files = parts_of(file)
    return stand_in(file.name.removesuffix(".gguf"), KIND, files, lambda folder: _make(file, folder))


def gguf_tensors(folder: Path, file: Path) -> dict[str, TensorInfo]:
    """All tensors of the GGUF file that a folder stands for, under transformers' names.

    Raises:
        ModelError: the file is damaged.
    """
    return dict(_tensors(folder, file))


@functools.lru_cache(maxsize=4)  # a folder stands for one state of a file
def _tensors(folder: Path, file: Path) -> dict[str, TensorInfo]:
    return dict(_named(read_header(file), read_json(folder / _CONFIG), file))


def _make(file: Path, folder: Path) -> dict[str, Any]:
    header = read_header(file)
    config = _config(header, file)
    tensors = dict(_named(header, config, file))
    end_ids = write_tokenizer(header.metadata, folder, str(file))
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if end_ids:
        generation = {key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config}
        (folder / "generation_config.json").write_text(
            json.dumps({**generation, "eos_token_id": end_ids if len(end_ids) > 1 else end_ids[0]}, indent=2) + "\n"
        )
    return {"tensors": len(tensors)}


def _config(header: Header, file: Path) -> dict[str, Any]:
    """Return the config.json of such a model."""
    metadata = header.metadata
    if metadata.get("general.type", "model") != "model" or str(metadata.get("general.architecture")) == "clip":
        raise ModelError(
            f"{file} is not a language model but {metadata.get('general.type', 'an image encoder')}.",
            "It belongs to a model's other file.",
            "Name the file with the language model's weights.",
        )
    name = str(metadata.get("general.architecture"))
    model_type = model_type_of_mixture(name, metadata) or model_type_of(name)
    if model_type is None:
        raise ModelError(
            f"{file} is a GGUF file of the architecture {shown_value(name)}, which cannot be read.",
            f"These can: {', '.join(sorted({each.name for each in READABLE.values()}))}.",
            "Use the safetensors version of the model.",
        )
    if (name, model_type) == ("llama", "llama") and _has_biases_of_qwen2(header):
        model_type = "qwen2"
    architecture = _architecture(name, model_type)
    facts = Facts(architecture.name, metadata, frozenset(header.tensors), str(file))
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{file} holds no token embedding.", "", "Name the file with the language model's weights.")
    if facts.count("block_count") > len(header.tensors):
        raise ModelError(
            f"{file} lists {facts.count('block_count'):,} layers, but holds only {len(header.tensors):,} tensors.",
            "The header is damaged.",
            "Download the file again.",
        )
    config = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "dtype": "float16",
        **architecture.read(facts),
        **special_ids(metadata),
    }
    return {**config, **_scaled_positions(header, config, facts)}


def _has_biases_of_qwen2(header: Header) -> bool:
    """Whether queries have a bias and outputs none, as in Qwen 2 alone.

    :func:`engine.model_files.gguf.architectures.architecture_of` writes a narrow one as a Llama.
    """
    return "blk.0.attn_q.bias" in header.tensors and "blk.0.attn_output.bias" not in header.tensors


def _architecture(name: str, model_type: str) -> Architecture:
    """How a file of this architecture holds such a model."""
    if (name, model_type) == ("llama", "qwen2"):
        return replace(READABLE["llama"], read=READABLE["qwen2"].read)
    return READABLE[model_type]


_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def _scaled_positions(header: Header, config: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """Rotary factors that llama.cpp keeps as tensors, in config.json's words."""
    factors = {name: _vector(header.tensors[name]) for name in _OF_CONFIG if name in header.tensors}
    if "rope_freqs.weight" in factors:
        return {"rope_scaling": llama3_scaling(factors["rope_freqs.weight"], config, facts.where)}
    if len(factors) == 2:
        return {
            "rope_scaling": {
                "type": "longrope",
                "long_factor": factors["rope_factors_long.weight"].tolist(),
                "short_factor": factors["rope_factors_short.weight"].tolist(),
            }
        }
    return {}


def _vector(stored: StoredTensor) -> Any:
    with stored.file.open("rb") as stream:
        stream.seek(stored.offset)
        return dequantize(np.frombuffer(stream.read(stored.nbytes), dtype=np.uint8), stored.kind)


def _named(header: Header, config: dict[str, Any], file: Path) -> Iterator[tuple[str, TensorInfo]]:
    """Each weight under transformers' name."""
    model_type = str(config["model_type"])
    architecture = _architecture(str(header.metadata.get("general.architecture")), model_type)
    theirs = _names(architecture, int(config.get("num_hidden_layers") or config["n_layer"]))
    for name, stored in header.tensors.items():
        if name in _OF_CONFIG:
            continue
        if not can_dequantize(stored.kind):
            raise ModelError(
                f"The tensor {name} in {file} is of the type {type_name(stored.kind)}, which cannot be dequantised.",
                "The installed gguf package has no arithmetic for it.",
                "Use another quantisation of the model, such as Q4_K_M or Q8_0.",
            )
        if name in theirs:
            yield theirs[name], _info(architecture, config, theirs[name], stored)
            continue
        found = list(experts_of(model_type, name, stored))
        if not found:
            raise ModelError(
                f"{file} holds a tensor {name}, which {_CLASSES[model_type]} of transformers does not have.",
                "The model would be another one without it.",
                "Use the safetensors version of the model.",
            )
        for expert, part in found:
            yield expert, _info(architecture, config, expert, part)


def _info(architecture: Architecture, config: dict[str, Any], name: str, stored: StoredTensor) -> TensorInfo:
    try:
        turned = architecture.layout(config, name, stored.shape[0]).turned
        shape = tuple(reversed(stored.shape)) if turned else stored.shape
        if name.endswith(SHARED_GATE) and len(shape) == 1:
            shape = (1, *shape)
        layout = architecture.layout(config, name, shape[0])
    except ValueError:  # rows that no heads fill
        raise ModelError(
            f"The tensor {name} in {stored.file} has the shape {stored.shape}, which the header's heads do not fill.",
            "The header and the tensors belong to different models.",
            "Download the file again.",
        ) from None
    kind = type_name(stored.kind)
    dtype = _DTYPES.get(kind, "float16")
    # Numbers that the file stores as transformers has them are read as those of safetensors, many times as fast.
    decoder = None if kind in _PLAIN and layout.is_same else GgufValues(stored, layout)
    return TensorInfo(shape, dtype, stored.nbytes, stored.file, stored.offset, decoder, stored_as=kind)


def _names(architecture: Architecture, layers: int) -> dict[str, str]:
    """Transformers' name of each tensor by its GGUF name."""
    import gguf

    kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    ours = gguf.get_tensor_name_map(kind, layers)
    found = {}
    for template in architecture.tensors:
        for layer in range(layers if "{}" in template else 1):
            stem = template.format(layer)
            name = ours.get_name(stem)
            if name is None:  # a head, where llama.cpp has no place for one beside the embedding
                continue
            for ending in (".weight", ".bias"):
                found[name + ending] = stem + ending
    return found
