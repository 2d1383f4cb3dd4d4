"""Tiny random models as Hugging Face folders: config, safetensors and one tokenizer that all of them share.

    from tests.tiny import tiny_model, tiny_tokenizer_folder

    folder = tiny_model("llama")                    # hidden 32, 4 layers, about 30k parameters
    student = tiny_model("llama", num_layers=2, seed=1)
    padded = tiny_model("qwen2")                    # the embedding has PADDING_ROWS rows more than there are ids

A folder is made once a test session and handed to everybody who asks with the same arguments, in well under a second
(the first call imports transformers): treat it as read-only, and ``shutil.copytree`` it to change it. The weights are
random but large, so that the distributions are far from uniform. ``VOCAB_SIZE`` is V_eff: ids the tokenizer can say.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

VOCAB_SIZE = 320
PADDING_ROWS = 24
MAX_POSITIONS = 128
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"

ARCHITECTURES = ("llama", "qwen2", "gpt_neox", "gpt2", "gemma2")
"""Between them: rotary and learned positions, tied and untied heads, padded rows, softcap, embedding scale."""

_TEXT = (
    "A small model learns from what a large model would have said. The teacher reads the data once and leaves records; "
    "the student learns from these records, and never meets the teacher. Layers, tokens, heads and tails: a record "
    "holds the likely words exactly and draws the others by chance, so that on average nothing is lost.\n"
)


@functools.cache
def scratch() -> Path:
    """A folder that lives as long as the test session."""
    path = Path(tempfile.mkdtemp(prefix="tinydistill-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def tiny_texts(count: int = 20) -> list[str]:
    """Different documents of some 10 to 120 words in the tokenizer's own words, the same in every session."""
    words = _TEXT.split()
    return [
        " ".join(words[(7 * number + 3 * place * (number + 1)) % len(words)] for place in range(10 + 23 * number % 111))
        for number in range(count)
    ]


@functools.cache
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of VOCAB_SIZE ids: id 0 ends a text, id 1 pads; every text can be said in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def tiny_tokenizer_folder() -> Path:
    """A folder with the tokenizer alone."""
    folder = scratch() / "tokenizer"
    tiny_tokenizer().save_pretrained(folder)
    return folder


@functools.cache
def tiny_model(
    architecture: str = "llama",
    *,
    num_layers: int = 4,
    hidden_size: int = 32,
    seed: int = 0,
    dtype: str = "float32",
    shard_bytes: int | None = None,
) -> Path:
    """A model folder with tokenizer, written once a session.

    Args:
        architecture: one of ARCHITECTURES; qwen2's embedding has PADDING_ROWS rows more than the tokenizer has ids.
        num_layers: decoder layers.
        hidden_size: a multiple of 16; there are 2 heads.
        seed: of the weights.
        dtype: of the file: float32, float16 or bfloat16.
        shard_bytes: largest safetensors file; several files and an index when the model is larger.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(architecture, **_config(architecture, num_layers, hidden_size))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:  # norms and biases start as exact ones and zeros, which would hide mistakes
                    parameter.add_(0.1 * torch.randn(parameter.shape))
                elif "embed" in name or "wte" in name or "lm_head" in name:
                    parameter.mul_(2.0)
    folder = scratch() / f"{architecture}-{num_layers}x{hidden_size}-seed{seed}-{dtype}-{shard_bytes}"
    shards = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
    model.to(getattr(torch, dtype)).save_pretrained(folder, **shards)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _config(architecture: str, num_layers: int, hidden_size: int) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "initializer_range": 0.15,
    }
    if architecture == "gpt2":
        return shared | {
            "n_embd": hidden_size,
            "n_layer": num_layers,
            "n_head": 2,
            "n_positions": MAX_POSITIONS,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
    shared |= {
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
    }
    if architecture == "gpt_neox":
        return shared | {"tie_word_embeddings": False}
    shared["num_key_value_heads"] = 1
    if architecture == "llama":
        return shared | {"tie_word_embeddings": False}
    if architecture == "qwen2":
        return shared | {"tie_word_embeddings": True, "vocab_size": VOCAB_SIZE + PADDING_ROWS}
    if architecture == "gemma2":
        return shared | {
            "head_dim": hidden_size // 2,
            "query_pre_attn_scalar": hidden_size // 2,
            "sliding_window": 16,
            "final_logit_softcapping": 5.0,
            "tie_word_embeddings": True,
        }
    raise ValueError(f"no tiny {architecture}; there are {', '.join(ARCHITECTURES)}")
