"""Memory of the phase that prepares: it holds the tokenizer, and the text in pieces."""

from __future__ import annotations

from engine.data.sources import PYTHON_DOCS
from engine.machine import torch_memory

# Python with torch, transformers and h5py, and the pieces of text on their way to the file.
_WITHOUT_TOKENIZER = 280 * 2**20
# A tokenizer, its tables as Python reads them, and the comparison of its ids with the other model's: 1,150 bytes for
# each of 49,152 ids, 1,350 for each of 262,144.
_OF_ID = 1300
# Modules of Python whose documentation is read, as they are parsed.
_DOCUMENTATION = 32 * 2**20


def prepare_bytes(vocab_size: int, data: str | None) -> int:
    """Highest anonymous memory of the phase.

    A text that holds the name of a control token needs a second tokenizer, which shares the first one's vocabulary. It
    is a copy for those few that read such a name as the token even so, and that is not counted.

    Args:
        vocab_size: of the teacher.
        data: as the setting has it; None is Python's own documentation.
    """
    documentation = _DOCUMENTATION if data in (None, PYTHON_DOCS) else 0
    return torch_memory.more_bytes() + _WITHOUT_TOKENIZER + documentation + _OF_ID * vocab_size
