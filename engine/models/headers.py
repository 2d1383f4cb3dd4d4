"""The headers of safetensors files: which tensors there are, of what shape and dtype, and where their bytes begin.

Reads a few kilobytes at the start of each file and no weights. Knows nothing of torch, and not what a tensor is for.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, then JSON, then the bytes).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Float dtypes: the header's word, and the usual one."""

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, as its header describes it.

    Attributes:
        shape: its shape.
        dtype: float32, float16, bfloat16 …; the header's own word (I64, U8 …) where it is no float.
        nbytes: its bytes in the file.
        file: the file that holds it.
        offset: where its bytes begin, from the start of the file.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path
    offset: int

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a folder's safetensors files, by name, from the headers alone.

    Raises:
        ModelError: there are no safetensors files, or one is missing, cut short, or not what it says it is.
    """
    tensors: dict[str, TensorInfo] = {}
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file() and not (folder / "model.safetensors").is_file():
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{index_path} has no weight_map.", "", "Download or save the model again.")
        if not all(isinstance(file, str) and file == Path(file).name for file in weight_map.values()):
            raise ModelError(
                f"{index_path} names files that are not in the model's folder.", "", "Download or save the model again."
            )
        files = sorted({folder / file for file in weight_map.values()})
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(
                f"Of the {len(files)} weight files of the model in {folder}, {len(missing)} are missing: "
                f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}.",
                "The download did not end, or files were removed.",
                "Download the model again.",
            )
        for file in files:
            tensors.update(_read_header(file))
        absent = sorted(set(weight_map) - set(tensors))
        if absent:
            raise ModelError(
                f"{index_path} names {absent[0]}, which no file holds.", "", "Download or save the model again."
            )
    elif (folder / "model.safetensors").is_file():
        tensors = _read_header(folder / "model.safetensors")
    else:
        raise _no_safetensors(folder)
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder.

    Raises:
        ModelError: it cannot be read, or is no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read.", f"{error}.", "Download or save the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object.", "", "Download or save the model again.")
    return value


def _read_header(file: Path) -> dict[str, TensorInfo]:
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if start.startswith(b"version "):
                raise ModelError(
                    f"{file} is a Git LFS pointer, not the weights.", "", "Run git lfs pull in the model's folder."
                )
            header = json.loads(stream.read(length)) if 2 <= length <= min(size - 8, 100_000_000) else None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read.", f"{error}.", "Download the model again.") from error
    if not isinstance(header, dict):
        raise ModelError(f"{file} is not a safetensors file, or is cut short.", "", "Download the model again.")
    try:
        tensors = {name: _tensor(file, 8 + length, entry) for name, entry in header.items() if name != "__metadata__"}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{file} has a damaged header.", "", "Download the model again.") from error
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=8 + length)
    if end != size:
        raise ModelError(
            f"{file} has {size:,} bytes, its header speaks of {end:,}.",
            "The download did not end, or the file is damaged.",
            "Download the model again.",
        )
    return tensors


def _tensor(file: Path, start: int, entry: dict[str, Any]) -> TensorInfo:
    """One entry of a header.

    Raises:
        KeyError, TypeError, ValueError: it is not what the format says.
    """
    shape, word, (first, last) = tuple(entry["shape"]), entry["dtype"], entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, first, last)) or not isinstance(word, str):
        raise ValueError("sizes are whole numbers")
    tensor = TensorInfo(shape, DTYPES.get(word, word), last - first, file, start + first)
    if word in _BYTES and tensor.nbytes != tensor.numel * _BYTES[word]:
        raise ValueError("the bytes are not those of the shape")
    return tensor


def _no_safetensors(folder: Path) -> ModelError:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")) or any(folder.glob("*.pt")):
        return ModelError(
            f"The weights in {folder} are pickles (.bin), not safetensors.",
            "A pickle can run any code when it is opened, and cannot be read tensor by tensor.",
            'If you trust them, convert once: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}')\"",
        )
    if any(folder.glob("*.gguf")):
        return no_gguf(folder)
    return ModelError(
        f"{folder} has a config.json but no weights.",
        "There is no model.safetensors and no model.safetensors.index.json.",
        "Download or save the model again.",
    )


def no_gguf(folder: Path) -> ModelError:
    """The refusal of a folder that holds GGUF files."""
    return ModelError(
        f"The model in {folder} is a GGUF file.",
        "GGUF weights cannot be read yet.",
        "Use the safetensors version of the model.",
    )
