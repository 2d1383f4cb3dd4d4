"""The weights of a model's folder, whatever files they are in: tensors by name, with how their bytes become numbers.

This is the one place that knows which formats there are. Reads headers and no weights, and knows nothing of torch.
"""

from __future__ import annotations

from pathlib import Path

from engine.models.gguf.folder import gguf_tensors, stands_for_gguf
from engine.models.headers import TensorInfo, read_safetensors


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a model's folder under transformers' names, from the headers alone.

    Raises:
        ModelError: there are no weights, or a file is missing, cut short, or not what it says it is.
    """
    return gguf_tensors(folder) if stands_for_gguf(folder) else read_safetensors(folder)


def is_decoded(folder: Path) -> bool:
    """Whether a model's weights are quantised, or kept in an order of their own, so that transformers cannot map them.

    Raises:
        ModelError: as :func:`read_tensors`.
    """
    return any(tensor.decoder is not None for tensor in read_tensors(folder).values())
