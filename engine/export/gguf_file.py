"""A model's folder as one GGUF file, tensor by tensor: never more than one tensor is in memory.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Matrices are stored in the type asked for;
vectors stay float32, as llama.cpp wants them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.disk.files import NO_ROOM, commit_file, fsync_file, no_room
from engine.errors import ModelError
from engine.export.place import temporary_for
from engine.export.vocabulary import add_vocabulary, model_name
from engine.model_files.gguf.architectures import architecture_of, extra_tensors
from engine.model_files.gguf.numbers import Config, check
from engine.model_files.headers import NUMPY_FLOATS, TensorInfo, read_bytes, read_json
from engine.model_files.weight_files import read_tensors

TYPES = ("f16", "bf16", "q8_0")
_FILE_TYPES = {"f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_Q8_BLOCK = 32
_HEADS = ("lm_head.weight", "embed_out.weight")


def write_gguf(folder: Path, out: Path, *, weight_type: str = "f16") -> int:
    """Write a model's folder as a GGUF file; returns the number of its tensors.

    Args:
        folder: config.json, safetensors and tokenizer.json.
        out: the file; an older one is replaced once the new one is whole.
        weight_type: of matrices: f16, bf16 or q8_0.

    Raises:
        ModelError: the architecture, the tokenizer or a tensor cannot be written.
        DiskFull: no room; the older file is untouched.
    """
    import gguf

    from engine.models.meta import read_config  # torch takes seconds to import

    architecture = architecture_of(read_json(folder / "config.json"))
    config = read_config(folder, trust_remote_code=False).to_dict()  # no model with code of its own can be written
    check(config)
    temporary = temporary_for(out)
    writer = gguf.GGUFWriter(temporary, architecture.name)
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(model_name(folder))
        writer.add_file_type(int(gguf.LlamaFileType[_FILE_TYPES[weight_type]]))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        architecture.describe(writer, config)
        tensors = dict(_named(folder, config))
        add_vocabulary(writer, folder, rows=tensors["token_embd.weight"][1].shape[0])
        extras = list(extra_tensors(config))
        for name, values in extras:
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        for target, (source, info) in tensors.items():
            shape = architecture.layout(config, source, info.shape[0]).shape(info.shape)
            kind = _kind(shape, weight_type)
            stored = _stored_shape(shape, kind)
            writer.add_tensor_info(target, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values in extras:
            writer.write_tensor_data(values)
        for source, info in tensors.values():
            layout = architecture.layout(config, source, info.shape[0])
            values = np.ascontiguousarray(layout.stored(_read(info)))
            kind = _kind(values.shape, weight_type)
            writer.write_tensor_data(gguf.quants.quantize(values, kind).view(np.uint8))
        writer.close()
        fsync_file(temporary)
        commit_file(temporary, out, point="gguf")
    except OSError as error:
        with contextlib.suppress(OSError):
            writer.close()
        told = _told_again(temporary, error)
        if told.errno in NO_ROOM:
            raise no_room(f"There was no room to write {out}.", told, then="or choose another --out") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return len(tensors) + len(extras)


def _told_again(file: Path, error: OSError) -> OSError:
    """The reason for which a file was not written: numpy's ``tofile`` keeps it for itself, and another write has it."""
    if error.errno is None and file.exists():
        try:
            with file.open("ab") as again:
                again.write(bytes(2**20))
        except OSError as told:
            return told
    return error


def _named(folder: Path, config: Config) -> Iterator[tuple[str, tuple[str, TensorInfo]]]:
    """Each tensor that goes into the file: its GGUF name, its name in the checkpoint, and where it is."""
    import gguf

    architecture = architecture_of(config)
    kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    layers = int(config.get("num_hidden_layers") or config["n_layer"])
    names = gguf.get_tensor_name_map(kind, layers)
    tensors = read_tensors(folder)
    is_tied = bool(config.get("tie_word_embeddings", config.get("model_type") != "gpt_neox"))
    if is_tied:
        tensors = {name: info for name, info in tensors.items() if name not in _HEADS}
    for name, info in tensors.items():
        if info.dtype not in NUMPY_FLOATS or name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")):
            continue  # masks and tables, which are no weights
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ModelError(
                f"The tensor {name} has no place in a GGUF file of the architecture {architecture.name}.",
                "The model has parts that llama.cpp does not know.",
                "Use --format hf.",
            )
        yield target, (name, info)
        if is_tied and architecture.needs_head and target == "token_embd.weight":
            yield "output.weight", (name, info)


def _read(info: TensorInfo) -> NDArray[np.float32]:
    """A tensor as float32."""
    if info.decoder is not None:
        return info.decoder.values(read_bytes, 0, info.numel).reshape(info.shape)
    with info.file.open("rb") as file:
        file.seek(info.offset)
        values: NDArray[Any] = np.fromfile(file, dtype=NUMPY_FLOATS[info.dtype], count=info.numel)
    if info.dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False).reshape(info.shape)


def _kind(shape: tuple[int, ...], weight_type: str) -> Any:
    import gguf

    if len(shape) < 2:
        return gguf.GGMLQuantizationType.F32
    if weight_type == "q8_0" and shape[-1] % _Q8_BLOCK:
        return gguf.GGMLQuantizationType.F16  # q8_0 is made of blocks of 32
    return gguf.GGMLQuantizationType[weight_type.upper()]


def _stored_shape(shape: tuple[int, ...], kind: Any) -> tuple[int, ...]:
    """The shape in bytes, as the package takes it for types that numpy does not have."""
    import gguf

    return tuple(gguf.quant_shape_to_byte_shape(shape, kind))
