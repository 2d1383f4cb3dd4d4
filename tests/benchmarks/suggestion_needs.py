"""How much memory the pairs of the wizard's suggestions need at least, as the planner predicts it for a processor.

    python -m tests.benchmarks.suggestion_needs

For each pair it makes folders with the models' config.json and a safetensors file that has a header and no data, and
looks for the smallest budget at which the planner finds settings. The shapes are those of the models' own config.json.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.machine import hardware
from engine.model_files.demo import DEMO_TEACHER
from engine.planner import plan
from engine.settings.config import RunConfig

# hidden, layers, heads, key-value heads, intermediate, head size, rows of the embedding, tied, family
SHAPES: dict[str, tuple[int, int, int, int, int, int, int, bool, str]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (576, 30, 9, 3, 1536, 64, 49152, True, "llama"),
    "HuggingFaceTB/SmolLM2-360M-Instruct": (960, 32, 15, 5, 2560, 64, 49152, True, "llama"),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (2048, 24, 32, 32, 8192, 64, 49152, True, "llama"),
    "Qwen/Qwen2.5-0.5B-Instruct": (896, 24, 14, 2, 4864, 64, 151936, True, "qwen2"),
    "Qwen/Qwen2.5-1.5B-Instruct": (1536, 28, 12, 2, 8960, 128, 151936, True, "qwen2"),
    "Qwen/Qwen2.5-7B-Instruct": (3584, 28, 28, 4, 18944, 128, 152064, False, "qwen2"),
    "Qwen/Qwen3-0.6B": (1024, 28, 16, 8, 3072, 128, 151936, True, "qwen3"),
    "Qwen/Qwen3-4B": (2560, 36, 32, 8, 9728, 128, 151936, True, "qwen3"),
}
PAIRS = [
    ("HuggingFaceTB/SmolLM2-360M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
    ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "HuggingFaceTB/SmolLM2-360M-Instruct"),
    ("Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B"),
    ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"),
]


def tensors(name: str) -> dict[str, list[int]]:
    """Names and shapes of a model's parameters."""
    hidden, layers, heads, kv, inter, size, rows, tied, family = SHAPES[name]
    found = {"model.embed_tokens.weight": [rows, hidden], "model.norm.weight": [hidden]}
    if not tied:
        found["lm_head.weight"] = [rows, hidden]
    for layer in range(layers):
        here = f"model.layers.{layer}."
        found |= {
            f"{here}input_layernorm.weight": [hidden],
            f"{here}post_attention_layernorm.weight": [hidden],
            f"{here}self_attn.q_proj.weight": [heads * size, hidden],
            f"{here}self_attn.k_proj.weight": [kv * size, hidden],
            f"{here}self_attn.v_proj.weight": [kv * size, hidden],
            f"{here}self_attn.o_proj.weight": [hidden, heads * size],
            f"{here}mlp.gate_proj.weight": [inter, hidden],
            f"{here}mlp.up_proj.weight": [inter, hidden],
            f"{here}mlp.down_proj.weight": [hidden, inter],
        }
        if family == "qwen2":
            for part, width in (("q", heads), ("k", kv), ("v", kv)):
                found[f"{here}self_attn.{part}_proj.bias"] = [width * size]
        if family == "qwen3":
            found[f"{here}self_attn.q_norm.weight"] = found[f"{here}self_attn.k_norm.weight"] = [size]
    return found


def parameters(name: str) -> int:
    """How many parameters a model has."""
    return sum(math.prod(shape) for shape in tensors(name).values())


def folder_of(name: str, home: Path) -> Path:
    """A model's folder without data."""
    hidden, layers, heads, kv, inter, size, rows, tied, family = SHAPES[name]
    folder = home / name.replace("/", "--")
    if folder.exists():
        return folder
    folder.mkdir()
    config: dict[str, Any] = {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": inter, "head_dim": size, "vocab_size": rows,
        "tie_word_embeddings": tied, "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for key, shape in tensors(name).items():
        size_bytes = 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size_bytes]}
        end += size_bytes
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        file.truncate(8 + len(words) + end)  # a hole: it takes no disk
    for file_name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (DEMO_TEACHER / file_name).exists():
            shutil.copy(DEMO_TEACHER / file_name, folder)
    return folder


def least_memory(teacher: Path, student: Path, text: Path) -> int:
    """The smallest budget, to 64 MiB, at which the planner finds settings that fit."""
    machine = replace(hardware.detect(text), gpus=(), ram_bytes=2**40, available_bytes=2**40, disk_free_bytes=2**42)
    low, high = 0, 2**10  # in 64 MiB
    while high - low > 1:
        middle = (low + high) // 2
        asked = {"teacher": str(teacher), "student": str(student), "data": str(text), "sequence_length": 512,
                 "device": "cpu", "memory_budget": middle * 2**26, "ram_budget": middle * 2**26}  # fmt: skip
        fits = plan(RunConfig.model_validate(asked), hardware=machine, strict=False).misfit is None
        low, high = (low, middle) if fits else (middle, high)
    return high * 2**26


def main() -> None:
    """Print a row for each pair."""
    with tempfile.TemporaryDirectory() as place:
        home, text = Path(place), Path(place) / "text.txt"
        text.write_text("The teacher scores the text once, and the student learns from what it said. " * 20_000)
        for teacher, student in PAIRS:
            need = least_memory(folder_of(teacher, home), folder_of(student, home), text)
            models = "  ".join(f"{name:36} {parameters(name):>14,}" for name in (teacher, student))
            print(f"{models} {need:>14,}", flush=True)


if __name__ == "__main__":
    main()
