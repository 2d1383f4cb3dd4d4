"""Which files are GGUF files: all that is asked of a model that is none, so this loads no arrays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from engine.errors import ModelError
from engine.model_files.stand_in import SOURCE

MAGIC = b"GGUF"
KIND = "gguf"
"""Of the folders that stand for a GGUF file."""

_NOT_A_MODEL = re.compile(r"(^|[-_.])(mmproj|imatrix)[-_.]", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}$")
# A quantisation in a file's name, as in model-Q4_K_M, model.IQ2_XXS or model-UD-Q3_K_XL.
_QUANT = re.compile(
    r"(?:^|[-_.])((?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d+_\d+|MXFP4(?:_[A-Z0-9]+)*|BF16|F16|FP16|F32))(?=$|[-.])",
    re.IGNORECASE,
)


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
            "A run needs exactly one of them.",
            f"Name the file: {files[0]}",
        )
    return files[0] if files else None


def files_by_quant(names: Iterable[str]) -> dict[str, list[str]]:
    """GGUF models among a repository's files: for each quantisation, its file, or the parts in order.

    Where two models have the same quantisation, or a name has none, a model is called by its file's name.

    Args:
        names: of files, with their folders.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith(".gguf") and not _NOT_A_MODEL.search(name.rpartition("/")[2]):
            models.setdefault(_PART.sub("", name.removesuffix(".gguf")), []).append(name)
    quants = {stem: (_QUANT.findall(stem.rpartition("/")[2]) or [""])[-1].upper() for stem in models}
    counts = Counter(quants.values())
    return {
        quants[stem] if quants[stem] and counts[quants[stem]] == 1 else stem.rpartition("/")[2]: files
        for stem, files in models.items()
    }


def is_gguf(file: Path) -> bool:
    """Return whether a file begins as GGUF does, whatever its name (Ollama's blobs have no ending)."""
    try:
        with file.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False
