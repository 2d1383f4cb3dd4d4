"""The header of a GGUF file: its metadata, and the types and positions of its tensors.

Every number in a header is checked against the file's size before any allocation, so a truncated or invalid file gives
one error message. Reads no weights, and knows nothing of the use of tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from engine.errors import ModelError, shown_value
from engine.model_files.gguf.find import MAGIC

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_METADATA = 256 * 2**20  # bytes; the largest vocabularies take 30 MB
_MOST_DIMENSIONS = 4
_MOST_NAME = 256
_SMALLEST_KEY, _SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a GGUF file.

    Attributes:
        kind: number of its type (``gguf.GGMLQuantizationType``).
        shape: as numpy has it, rows first; the file has it the other way round.
        file: the file that holds it.
        offset: where its bytes begin, from the start of the file.
        nbytes: its bytes.
    """

    kind: int
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """Header of a GGUF file.

    Attributes:
        files: the file, or all parts of a model that was split.
        metadata: values by key; arrays as lists.
        tensors: by name.
    """

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_header(file: Path) -> Header:
    """The header of a GGUF file; of all parts where the file is one part of a split model.

    Raises:
        ModelError: it is not a GGUF file, is cut short or damaged, or a part is missing.
    """
    files = parts_of(file)
    headers = [_read_one(part) for part in files]
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        tensors.update(header.tensors)
    told = headers[0].metadata.get("split.tensors.count")
    if len(files) > 1 and isinstance(told, int) and told != len(tensors):
        raise ModelError(
            f"The {len(files)} parts of {file} hold {len(tensors)} tensors, and the first part lists {told}.",
            "The parts do not belong together.",
            "Download the model again.",
        )
    return replace(headers[0], files=files, tensors=tensors)


def parts_of(file: Path) -> tuple[Path, ...]:
    """The file alone, or all parts of the split model that it belongs to.

    Raises:
        ModelError: a part is missing.
    """
    match = _SPLIT.fullmatch(file.name)
    if match is None or int(match[3]) <= 1:
        return (file,)
    files = tuple(
        file.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, int(match[3]) + 1)
    )
    missing = [part.name for part in files if not part.is_file()]
    if missing:
        raise ModelError(
            f"Of the {len(files)} parts of {file.name}, {len(missing)} are missing: {', '.join(missing[:3])}.",
            "The download did not end, or files were removed.",
            f"Download all parts into {file.parent}.",
        )
    return files


class _Cut(Exception):
    """A header that ends too early, or says what cannot be."""


class _Reader:
    """Reads a header's values; each is compared with what is left of the file first."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self.left = size

    def bytes(self, count: int) -> bytes:
        if count > self.left:
            raise _Cut(f"{count:,} bytes are announced, but only {self.left:,} are left")
        data = self._stream.read(count)
        self.left -= count
        if len(data) != count:
            raise _Cut("it ends early")
        return data

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.bytes(struct.calcsize("<" + letter)))[0]

    def text(self) -> str:
        return self.bytes(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int, *, is_inner: bool = False) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or is_inner:
            raise _Cut(f"a value is of the unknown kind {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[inner])
            if count * size > self.left:
                raise _Cut(f"an array of {count:,} numbers is announced, but only {self.left:,} bytes are left")
            return list(struct.unpack(f"<{count}{_SCALARS[inner]}", self.bytes(count * size)))
        if count * 8 > self.left:
            raise _Cut(f"an array of {count:,} texts is announced, but only {self.left:,} bytes are left")
        return [self.value(inner, is_inner=True) for _ in range(count)]


def _read_one(file: Path) -> Header:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            return _parse(file, _Reader(stream, min(size, _MOST_METADATA)), size)
    except _Cut as error:
        raise ModelError(
            f"{file} has a damaged GGUF header: {error}.",
            "The download did not end, or the file is damaged.",
            "Download the file again.",
        ) from None
    except OSError as error:
        raise ModelError(f"{file} cannot be read.", f"{error}.", "Check the file, or download it again.") from error


def _parse(file: Path, reader: _Reader, size: int) -> Header:
    start = reader.left
    if reader.bytes(4) != MAGIC:
        raise ModelError(f"{file} is not a GGUF file.", "It does not begin with GGUF.", "Name a GGUF file.")
    version = reader.number("I")
    if version not in _VERSIONS:
        big_endian = int.from_bytes(struct.pack("<I", version), "big") in _VERSIONS
        raise ModelError(
            f"{file} is a GGUF file of " + ("a big-endian machine." if big_endian else f"version {version}."),
            f"Little-endian files of the versions {' and '.join(map(str, _VERSIONS))} can be read.",
            "Convert the model again with a current llama.cpp.",
        )
    tensors, keys = reader.number("Q"), reader.number("Q")
    if keys * _SMALLEST_KEY + tensors * _SMALLEST_TENSOR > size:
        raise _Cut(f"it lists {tensors:,} tensors and {keys:,} keys, which do not fit into {size:,} bytes")
    metadata = {}
    for _ in range(keys):
        key = reader.text()
        metadata[key] = reader.value(reader.number("I"))
    drafts: dict[str, tuple[int, tuple[int, ...], int, int]] = {}
    for _ in range(tensors):
        name, draft = _tensor(reader, file)
        if name in drafts:
            raise _Cut(f"the tensor {shown_value(name)} is there twice")
        drafts[name] = draft
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise _Cut(f"an alignment of {shown_value(alignment)}")
    begin = -(-(start - reader.left) // alignment) * alignment
    found = {}
    for name, (kind, shape, nbytes, offset) in drafts.items():
        if begin + offset + nbytes > size:
            raise ModelError(
                f"{file} has {size:,} bytes, and its tensor {shown_value(name)} ends at {begin + offset + nbytes:,}.",
                "The download did not end, or the file is damaged.",
                "Download the file again.",
            )
        found[name] = StoredTensor(kind, shape, file, begin + offset, nbytes)
    return Header((file,), metadata, found)


def _tensor(reader: _Reader, file: Path) -> tuple[str, tuple[int, tuple[int, ...], int, int]]:
    length = reader.number("Q")
    if length > _MOST_NAME:
        raise _Cut(f"a tensor's name of {length:,} bytes is announced")
    name = reader.bytes(length).decode("utf-8", "replace")
    dimensions = reader.number("I")
    if not 0 < dimensions <= _MOST_DIMENSIONS:
        raise _Cut(f"the tensor {shown_value(name)} has {dimensions:,} dimensions")
    shape = tuple(reversed([reader.number("Q") for _ in range(dimensions)]))
    kind, offset = reader.number("I"), reader.number("Q")
    elements, block = type_sizes(kind, f"The tensor {shown_value(name)} in {file}")
    if not all(shape) or shape[-1] % elements:
        raise _Cut(f"the tensor {shown_value(name)} has the shape {shape}, which blocks of {elements} do not fill")
    return name, (kind, shape, math.prod(shape) // elements * block, offset)


def type_sizes(kind: int, where: str = "A tensor") -> tuple[int, int]:
    """Numbers in a block of a type, and its bytes.

    Args:
        kind: number of the type.
        where: it is, for messages.

    Raises:
        ModelError: there is no such type.
    """
    import gguf  # takes 0.3 s

    try:
        elements, block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ModelError(
            f"{where} has the GGUF type number {kind}, which the installed gguf package does not know.",
            "The file is damaged, or newer than the package.",
            "Try pip install --upgrade gguf, or download the file again.",
        ) from None
    return int(elements), int(block)


def type_name(kind: int) -> str:
    """The name of a type, as in ``Q4_K``."""
    import gguf

    return str(gguf.GGMLQuantizationType(kind).name)
