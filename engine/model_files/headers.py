"""The headers of safetensors files: names, shapes, dtypes and byte positions of tensors.

Reads a few kilobytes at the start of each file and no weights. Knows nothing of torch, and not what a tensor is for.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, then JSON, then the bytes).
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from engine.errors import ModelError
from engine.model_files.python_line import path_literal, python_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Float dtypes: the header's word, and the usual one."""

FLOAT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
NUMPY_FLOATS = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
"""Kinds of numpy that hold the stored bytes: numpy has no bfloat16, so its bits are read as whole numbers."""

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_OF_ANOTHER_KIND = (
    "consolidated",
    "adapter",
    "model-",
)  # Mistral's own names of tensors, an adapter, a part of a model
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# Placeholders in a model's folder instead of a file: how they begin, in lower case, and how to get the file.
_INSTEAD = (
    (b"version https://git-lfs", "a Git LFS pointer", "Run git lfs pull in {folder}."),
    (b"/annex/objects/", "a git-annex pointer", "Run git annex get . in {folder}."),
    (b"<!doctype html", "a web page", "Download the file again; its address may need a login."),
    (b"<html", "a web page", "Download the file again; its address may need a login."),
)

ReadBytes = Callable[[Path, int, int], "NDArray[np.uint8]"]
"""Reads a number of bytes of a file from an offset on."""


class Decoder(Protocol):
    """How stored bytes become a tensor's numbers, where that is more than a dtype."""

    @property
    def name(self) -> str:
        """The format's name, as in ``Q4_K``."""

    @property
    def step(self) -> int:
        """How many numbers are best asked for at once, or a multiple."""

    def values(self, read: ReadBytes, first: int, count: int) -> NDArray[np.float32]:
        """Numbers ``first`` to ``first + count`` in the tensor's flat order: float32, flat."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, as its header describes it.

    Attributes:
        shape: its shape.
        dtype: float32, float16, bfloat16 …; the header's own word (I64, U8 …) where it is no float.
        nbytes: its bytes in the file.
        file: the file that holds it.
        offset: where its bytes begin, from the start of the file.
        decoder: makes the numbers of the bytes; None where they are of ``dtype``. With a decoder, ``dtype`` is the
            float format of the numbers when they are written again.
        made_of: other tensors that its numbers are made of, beside its own bytes.
        stored_as: the file's own word for ``dtype``, where that is another (F16 in GGUF).
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path
    offset: int
    decoder: Decoder | None = None
    made_of: tuple[TensorInfo, ...] = ()
    stored_as: str = ""

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def value_bytes(self) -> int:
        """Bytes of its numbers in ``dtype``."""
        return self.nbytes if self.decoder is None else self.numel * FLOAT_BYTES[self.dtype]


def read_bytes(file: Path, offset: int, count: int) -> NDArray[np.uint8]:
    """Bytes of a file; a :data:`ReadBytes` for one who reads a tensor now and then.

    Raises:
        ModelError: the file ends before.
    """
    import numpy as np

    with file.open("rb") as stream:
        stream.seek(offset)
        data = np.fromfile(stream, dtype=np.uint8, count=count)
    if len(data) != count:
        raise ModelError(f"{file} ended early.", "It changed while it was read.", "Try again.")
    return data


def read_safetensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a folder's safetensors files, by name, from the headers alone.

    Raises:
        ModelError: there are no safetensors files, or one is missing, cut short, or not what it says it is.
    """
    index_path, single = folder / _INDEX, folder / _SINGLE
    indexed = _indexed_files(index_path) if index_path.is_file() else {}
    shards = [file.name for file in sorted(folder.glob("*.safetensors")) if _SHARD.fullmatch(file.name)]
    if single.is_file() and set(indexed.values()) != {_SINGLE}:
        beside = sorted({file for file in indexed.values() if (folder / file).is_file()} | set(shards))
        if beside:
            raise ModelError(
                f"{folder} holds two sets of weights: {_SINGLE}, and {_some(beside)}.",
                "They may be different models, and only one of them can be used.",
                "Move the set that you do not want to another folder, with its index.",
            )
        indexed = {}  # an index without its files, beside a whole model
    if single.is_file() and not indexed:
        return _read_header(single)
    if not indexed:
        raise _no_safetensors(folder, shards)
    files = sorted(set(indexed.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        others = [shard for shard in shards if shard not in files]
        check_link(folder / missing[0])
        raise ModelError(
            f"Of the {len(files)} weight files of the model in {folder}, {len(missing)} are missing: {_some(missing)}.",
            f"{_INDEX} names files that are not here, but {len(others)} others are: {_some(others)}."
            if others
            else "The download did not end, or files were removed.",
            f"If the others are the model, delete {_INDEX} and make it again: {_make_index(folder)}"
            if others
            else "Download the model again.",
        )
    if left_out := _left_out(files, shards):
        raise ModelError(
            f"{index_path} leaves out {len(left_out)} of the weight files beside it: {_some(left_out)}.",
            "Their tensors would be missing, or they are of another model.",
            f"If they are of this model, make the index again: {_make_index(folder)}",
        )
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        tensors.update(_read_header(folder / file))
    absent = sorted(set(indexed) - set(tensors))
    if absent:
        raise ModelError(
            f"{index_path} names {absent[0]}, which no file holds.", "", "Download or save the model again."
        )
    return tensors


def _left_out(indexed: list[str], shards: list[str]) -> list[str]:
    """Shards of the number that the indexed ones tell (``-of-00006``) which the index does not name."""
    of = {name.partition("-of-")[2] for name in indexed if _SHARD.fullmatch(name)}
    return [shard for shard in shards if shard not in indexed and shard.partition("-of-")[2] in of]


def read_safetensors_file(file: Path) -> dict[str, TensorInfo]:
    """All tensors of one safetensors file, by name, from its header alone.

    Raises:
        ModelError: it is missing, cut short, or not what it says it is.
    """
    return _read_header(file)


def _indexed_files(index_path: Path) -> dict[str, str]:
    """The file's name for each tensor, as an index has them.

    Raises:
        ModelError: it is no index, or names files elsewhere.
    """
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index_path} has no weight_map.", "", "Download or save the model again.")
    # ./name is the same file as name; every other path leads out of the folder.
    if not all(
        isinstance(file, str) and PurePosixPath(file).parts == (Path(file).name,) for file in weight_map.values()
    ):
        raise ModelError(
            f"{index_path} names files that are not in the model's folder.", "", "Download or save the model again."
        )
    return {name: Path(file).name for name, file in weight_map.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _make_index(folder: Path) -> str:
    """A command that writes the index of the shards in a folder."""
    where = shlex.quote(str(folder))
    code = (
        "import glob, json, safetensors as s; "
        'm = {k: f for f in sorted(glob.glob("model-*.safetensors")) for k in s.safe_open(f, "np").keys()}; '
        f'json.dump({{"metadata": {{}}, "weight_map": m}}, open("{_INDEX}", "w"))'
    )
    return f"cd {where} && {python_line(code)}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder.

    Raises:
        ModelError: it cannot be read, or is not a JSON object.
    """
    try:
        data = path.read_bytes()
        check_content(path, data)
        _check_not_empty(path, data)
        value = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read.", f"{error}.", "Download or save the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object.", "", "Download or save the model again.")
    return value


def read_text(path: Path) -> str:
    """A text file of a model's folder.

    Raises:
        ModelError: it cannot be read, or only stands for the file.
    """
    try:
        data = path.read_bytes()
        check_content(path, data)
        return data.decode("utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read.", f"{error}.", "Download or save the model again.") from error


def check_content(path: Path, start: bytes) -> None:
    """Look at the first bytes of a file for what stands there instead of it.

    Raises:
        ModelError: it is a pointer of Git LFS or git-annex, or a web page.
    """
    for beginning, what, todo in _INSTEAD:
        if start.lstrip()[: len(beginning)].lower() == beginning:
            raise ModelError(f"{path} is {what}, not the file itself.", "", todo.format(folder=path.parent))


def check_link(path: Path) -> None:
    """Look whether a file is a link to one that is not there: a snapshot of a cache that was copied without its blobs.

    Raises:
        ModelError: it is.
    """
    if path.is_symlink() and not path.exists():
        raise ModelError(
            f"{path} is a link to {os.readlink(path)}, which is not there.",
            "",
            "Copy the files that the links lead to (cp -rL), or download the model again.",
        )


def _check_not_empty(path: Path, start: bytes) -> None:
    """Look at the first bytes of a file for what a download or a copy leaves that did not end.

    Raises:
        ModelError: the file is empty, or begins with zeros, as after a power loss.
    """
    if not start.strip(b"\0"):
        found = "begins with zeros" if start else "is empty"
        raise ModelError(f"{path} {found}.", "A download or a copy did not end.", "Download or save the model again.")


def _read_header(file: Path) -> dict[str, TensorInfo]:
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            beginning = start + stream.read(56)
            check_content(file, beginning)
            _check_not_empty(file, beginning)
            stream.seek(8)
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
            f"{file} has {size:,} bytes, but its header lists {end:,}.",
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
    if word in DTYPES and tensor.nbytes != tensor.numel * FLOAT_BYTES[DTYPES[word]]:
        raise ValueError("the bytes are not those of the shape")
    return tensor


def _save_again(folder: Path) -> str:
    """A command that writes a model's weights as safetensors beside its pickles."""
    name = path_literal(folder)
    return python_line(
        f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({name}).save_pretrained({name})"
    )


def _no_safetensors(folder: Path, shards: list[str]) -> ModelError:
    if shards:
        return ModelError(
            f"{folder} holds {len(shards)} weight files ({_some(shards)}) and no {_INDEX}.",
            "The index lists the file of each tensor.",
            f"Download it, or make it: {_make_index(folder)}",
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")) or any(folder.glob("*.pt")):
        return ModelError(
            f"The weights in {folder} are pickles (.bin), not safetensors.",
            "A pickle can run arbitrary code when it is opened, and cannot be read tensor by tensor.",
            f"If you trust them, convert once: {_save_again(folder)}",
        )
    return ModelError(f"{folder} has a config.json but no weights.", *_near_weights(folder))


_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")


def _near_weights(folder: Path) -> tuple[str, str]:
    """Files that may be the weights under another name, and what to do with them.

    Raises:
        ModelError: there is a link to nowhere.
    """
    entries = sorted(folder.iterdir())
    for entry in entries:
        check_link(entry)
    unfinished = [entry.name for entry in entries if entry.name.lower().endswith(_UNFINISHED)]
    if unfinished:
        return f"There is {_some(unfinished)}: the download did not end.", "Continue it, or download the model again."
    others = [entry for entry in entries if entry.name.lower().endswith(".safetensors") and entry.is_file()]
    if len(others) == 1 and not others[0].name.startswith(_OF_ANOTHER_KIND):
        moved = f"mv {shlex.quote(str(others[0]))} {shlex.quote(str(folder / _SINGLE))}"
        return f"There is {others[0].name}; the weights must be called {_SINGLE}.", f"If it is the model: {moved}"
    named = f" There is {_some([other.name for other in others])}." if others else ""
    return f"There is no {_SINGLE} and no {_INDEX}.{named}", "Download or save the model again."
