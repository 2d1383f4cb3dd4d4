"""Does a streamed teacher cost more from a GGUF file of Q4_K than from safetensors of float16?

    python -m tests.benchmarks.gguf_streaming --layers 12 --hidden 1024 --tokens 2048 8192

Both hold the same random llama; the files alternate, in one process. A line is one wave of rows of 256 tokens through
all layers, in processor seconds and in seconds. Fewer bytes are read from Q4_K, and more arithmetic is done on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.export import write_gguf
from engine.model_files.hub import resolve_model
from engine.models.streaming.teacher import StreamedTeacher
from tests.engine.model_files.gguf.test_matrix import with_q4_k
from tests.tiny import VOCAB_SIZE, tiny_tokenizer

ROW = 256


def make(place: Path, layers: int, hidden: int) -> dict[str, Path]:
    """The same model as float16 safetensors and as Q4_K."""
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCAB_SIZE, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, max_position_embeddings=ROW,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float16).save_pretrained(place / "f16")
    tiny_tokenizer().save_pretrained(place / "f16")
    write_gguf(place / "f16", place / "f16.gguf")
    with_q4_k(place / "f16.gguf", place / "q4_k.gguf")
    return {"f16 safetensors": place / "f16", "q4_k gguf": place / "q4_k.gguf"}


def main() -> None:
    """Print a row for each number of tokens in a wave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--tokens", type=int, nargs="*", default=[2048, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        files = make(Path(name), typed.layers, typed.hidden)
        for tokens in typed.tokens:
            wave = [torch.randint(2, VOCAB_SIZE, (4, ROW)) for _ in range(tokens // (4 * ROW))]
            teachers = {
                file: StreamedTeacher(resolve_model(path), dtype=torch.float32, device=torch.device("cpu"))
                for file, path in files.items()
            }
            told: dict[str, list[tuple[float, float]]] = {file: [] for file in files}
            for turn in range(typed.rounds + 1):
                for file, teacher in teachers.items():
                    used, began = time.process_time(), time.perf_counter()
                    teacher.last_hidden_states(wave)
                    if turn:  # the first reads the file from the disk
                        told[file].append((time.process_time() - used, time.perf_counter() - began))
            for teacher in teachers.values():
                teacher.close()
            medians = {
                file: [statistics.median(column) for column in zip(*rows, strict=True)] for file, rows in told.items()
            }
            plain, packed = medians["f16 safetensors"], medians["q4_k gguf"]
            sys.stdout.write(
                f"{tokens} tokens a wave: f16 {plain[0]:.2f} processor s ({plain[1]:.2f} s), q4_k {packed[0]:.2f} "
                f"({packed[1]:.2f} s): {plain[0] / packed[0]:.2f} times the rate by processor, "
                f"{plain[1] / packed[1]:.2f} by the clock\n"
            )


if __name__ == "__main__":
    main()
