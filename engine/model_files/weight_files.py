"""The weights of a model, whatever files they are in: tensors by name, with how their bytes become numbers.

This is the one place that knows which formats there are. Reads headers and no weights, and knows nothing of torch.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import ModelError
from engine.model_files import adapter as adapters
from engine.model_files.gguf import find as gguf_find
from engine.model_files.headers import TensorInfo, read_json, read_safetensors
from engine.model_files.known import causal_lm_types
from engine.model_files.stand_in import source_of, stand_in
from engine.model_files.wrapper import text_config, text_tensors

_CONFIG = "config.json"
_SAFETENSORS = "safetensors"
# Beside the weights: what a stand-in takes along.
_BESIDE = (
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "*.tiktoken", "tekken.json", "chat_template*", "LICENSE*", "NOTICE*",
)  # fmt: skip
_TOKENIZERS = ("tokenizer.json", "vocab.", "merges.txt", "tekken.json")
_NO_TOKENIZER = ("generation_config", "LICENSE", "NOTICE")
_TEXTS = (".json", ".jinja", ".txt")
# How a text begins that an editor of Windows, or its shell's ">", wrote; the libraries read none of these.
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a model's folder under transformers' names, from the headers alone.

    Raises:
        ModelError: there are no weights, or a file is missing, cut short, or not what it says it is.
    """
    source = source_of(folder)
    if source is None:
        return read_safetensors(folder)
    if source["kind"] == gguf_find.KIND:
        from engine.model_files.gguf import folder as gguf_folder  # loads numpy

        return gguf_folder.gguf_tensors(folder, Path(next(iter(source["files"]))))
    if source["kind"] == adapters.KIND:
        base = Path(source["base"])
        adapter = adapters.read_adapter(Path(source["folder"]))
        return adapters.merged_tensors(adapter, read_tensors(base), read_json(base / _CONFIG))
    tensors = read_safetensors(Path(source["folder"]))
    if source["quantization"] is not None:
        from engine.model_files.quantised import decoded_tensors  # loads numpy

        tensors = decoded_tensors(tensors, source["quantization"], source["folder"])
    return text_tensors(tensors) if source["is_wrapper"] else tensors


def model_of(folder: Path) -> str:
    """The person's own path of a model, for messages: a folder may stand for another, or for a file."""
    source = source_of(folder)
    if source is None:
        return str(folder)
    return str(next(iter(source["files"])) if source["kind"] == gguf_find.KIND else source["folder"])


def settings_of(folder: Path) -> str:
    """The place of a model's configuration, for messages."""
    source = source_of(folder)
    if source is not None and source["kind"] == gguf_find.KIND:
        return f"The header of {model_of(folder)}"
    if source is not None and source["kind"] == adapters.KIND:
        return settings_of(Path(source["base"]))
    return str(Path(model_of(folder)) / _CONFIG)


def is_decoded(folder: Path) -> bool:
    """Return whether transformers cannot load a folder's weights by itself: they are quantised, or somewhere else.

    Raises:
        ModelError: as :func:`read_tensors`.
    """
    return source_of(folder) is not None


def plain_folder(folder: Path, resolve: Callable[[str], Path]) -> Path:
    """The folder itself; a stand-in for a GGUF file, a text model in a wrapper, quantised weights, or an adapter.

    A folder whose texts begin with a byte-order mark has a stand-in too, with texts without one.

    Unreadable files are left to :func:`engine.model_files.spec.read_spec`, which says why.

    Args:
        folder: of the model.
        resolve: finds an adapter's base model by its path or id.

    Raises:
        ModelError: config.json or a GGUF file is damaged, or an adapter cannot be merged into its base model.
    """
    if source_of(folder) is None and adapters.is_adapter(folder):
        return _adapted(folder, resolve)
    found = gguf_find.gguf_in(folder)
    if found is not None:
        from engine.model_files.gguf import folder as gguf_folder

        return gguf_folder.folder_of_gguf(found)
    if source_of(folder) is not None or not (folder / _CONFIG).is_file():
        return folder
    config = read_json(folder / _CONFIG)
    text = text_config(config, causal_lm_types())
    plain = dict(config if text is None else text)
    quantization = plain.pop("quantization_config", None)
    if not isinstance(quantization, dict):
        quantization = None
    beside = _beside(folder)
    if text is None and quantization is None:
        if not any(map(_mark_of, [folder / _CONFIG, *beside])):
            return folder
        beside += sorted(folder.glob("*.py"))
    if quantization is not None:
        from engine.model_files.quantised import can_decode

        if not can_decode(quantization):
            return folder

    def make(out: Path) -> dict[str, Any]:
        if text is not None:  # which of a wrapper's two configurations counts differs between families
            there = text_tensors(read_safetensors(folder))
            plain["tie_word_embeddings"] = not any(name.startswith("lm_head.") for name in there)
        for file in beside:
            _copy(file, out / file.name)
        (out / _CONFIG).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        return {"folder": str(folder.absolute()), "quantization": quantization, "is_wrapper": text is not None}

    return stand_in(folder.resolve().name, _SAFETENSORS, [folder / _CONFIG, *beside], make)


def _adapted(folder: Path, resolve: Callable[[str], Path]) -> Path:
    """The folder that stands for a base model with an adapter."""
    adapter = adapters.read_adapter(folder)
    base = adapters.find_base(adapter, resolve)
    theirs, ours = _beside(base), _beside(folder)
    if any(file.name.startswith(_TOKENIZERS) or file.suffix == ".model" for file in ours):
        theirs = [file for file in theirs if file.name.startswith(_NO_TOKENIZER)]  # two would contradict each other
    beside = [*theirs, *sorted(base.glob("*.py")), *ours]

    def make(out: Path) -> dict[str, Any]:
        config = adapters.plain_config(adapter, base, read_tensors(base))
        for file in beside:
            _copy(file, out / file.name)
        (out / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return {"folder": str(folder.absolute()), "base": str(base.absolute())}

    return stand_in(folder.resolve().name, adapters.KIND, [*adapter.files, base / _CONFIG, *beside], make)


def _beside(folder: Path) -> list[Path]:
    """Files of a folder that a stand-in takes along."""
    return sorted({file for pattern in _BESIDE for file in folder.glob(pattern) if file.is_file()})


def _copy(file: Path, target: Path) -> None:
    """Copy a file; a text that begins with a byte-order mark in UTF-8 without one."""
    encoding, data = _mark_of(file), file.read_bytes()
    try:
        target.write_bytes(data if encoding is None else data.decode(encoding).encode())
    except UnicodeError as error:
        raise ModelError(f"{file} cannot be read.", f"{error}.", "Download or save the model again.") from error


def _mark_of(file: Path) -> str | None:
    """The encoding of a text that begins with a byte-order mark; None for any other file."""
    if file.suffix not in _TEXTS:
        return None
    with file.open("rb") as stream:
        head = stream.read(4)
    return next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), None)
