"""Random weights in the shapes of the Pythia models, for benchmarks without a network.

    python -m tests.benchmarks.pythia 410m FOLDER

Speed and memory depend on shapes alone. The tokenizer says a word for each byte, and has an id for each row.
Shapes: Biderman et al. 2023, https://arxiv.org/abs/2304.01373, table 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

SHAPES = {  # hidden, layers, heads
    "70m": (512, 6, 8),
    "160m": (768, 12, 12),
    "410m": (1024, 24, 16),
    "1.4b": (2048, 24, 16),
}
VOCAB_ROWS = 50_304


def make_pythia(size: str, folder: Path, *, dtype: str = "float32", num_layers: int | None = None) -> Path:
    """Write the model of that size (or of its width, and so deep) with a tokenizer, unless it is there already."""
    if not (folder / "tokenizer.json").is_file():
        write_tokenizer(folder, VOCAB_ROWS)
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    hidden_size, usual_layers, num_heads = SHAPES[size]
    config = GPTNeoXConfig(
        vocab_size=VOCAB_ROWS,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers or usual_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=2048,
        rotary_pct=0.25,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path, size: int) -> None:
    """Write a tokenizer of bytes whose ids fill a vocabulary; those that no byte has are never said."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"unused {number}" for number in range(len(words), size)]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)


if __name__ == "__main__":
    make_pythia(sys.argv[1], Path(sys.argv[2]))
