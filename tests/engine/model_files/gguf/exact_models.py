"""Models whose numbers are exact in float16, so that a file of 16 bits is compared with nothing lost."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from tests.tiny import tiny_tokenizer


def save_exact(model: PreTrainedModel, folder: Path) -> Path:
    """Round a model's numbers to float16, its norms and biases made uneven, and save it with the tiny tokenizer."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            parameter.copy_(parameter.half().float())
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
