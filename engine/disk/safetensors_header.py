"""The header of a safetensors file: https://huggingface.co/docs/safetensors/index#format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence


def safetensors_header(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """Return the header: its length (8 bytes, little-endian), and the JSON that describes the tensors.

    Args:
        tensors: name, dtype in the format's words (``BF16``), shape and bytes of each, in the order of the file.
    """
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, dtype, shape, num_bytes in tensors:
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + num_bytes]}
        place += num_bytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers may view the bytes after it as numbers of up to 8 bytes
    return len(text).to_bytes(8, "little") + text
