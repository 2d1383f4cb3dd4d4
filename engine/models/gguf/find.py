"""Which files are GGUF files: all that is asked of a model that is none, so this loads no arrays."""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import ModelError
from engine.models.stand_in import SOURCE

MAGIC = b"GGUF"
KIND = "gguf"
"""Of the folders that stand for a GGUF file."""

_NOT_A_MODEL = re.compile(r"(^|[-_.])mmproj[-_.]", re.IGNORECASE)


def gguf_in(folder: Path) -> Path | None:
    """The GGUF file that a folder is about; None where it holds other weights, or no GGUF file.

    Raises:
        ModelError: it holds several models.
    """
    if (folder / SOURCE).is_file() or any(folder.glob("*.safetensors")):
        return None
    files = [file for file in sorted(folder.glob("*.gguf")) if not _NOT_A_MODEL.search(file.name)]
    files = [file for file in files if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", file.name)]
    if len(files) > 1:
        raise ModelError(
            f"{folder} holds {len(files)} GGUF files ({', '.join(file.name for file in files[:3])}"
            + (" …)." if len(files) > 3 else ")."),
            "Only one of them can be meant.",
            f"Name the file: {files[0]}",
        )
    return files[0] if files else None


def is_gguf(file: Path) -> bool:
    """Whether a file begins as GGUF does, whatever its name (Ollama's blobs have no ending)."""
    try:
        with file.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False
