"""Is the planner's memory true? Predicted peaks beside measured ones, over models, batches, lengths and savings.

    python -m tests.benchmarks.predicted_memory --folder FOLDER [--json results.json] [--quick]
    python -m tests.benchmarks.predicted_memory --folder FOLDER --only student pythia --set precision=bf16

Each setting is a run of the real phase in a process of its own, for two optimizer steps or some 4,000 tokens of
scoring, on one thread. Memory is the highest anonymous memory of the process, sampled every 5 ms. The models are random
numbers, which changes nothing: memory depends on shapes. The claim is 10 % for each phase; the worst case is printed.
Freed memory is handed back where a case does not say otherwise; where it is kept, the phase begins as a run's does, out
of a process that has imported everything. One machine can play others: ONEDNN_MAX_CPU_ISA, ATEN_CPU_CAPABILITY and
MKL_ENABLE_INSTRUCTIONS in the environment reach the phases.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.cli.trial import try_phase
from engine.machine import hardware
from engine.planner import plan
from engine.planner.measure import cautious_rates
from engine.run.folder import versions
from engine.settings.config import RunConfig
from tests.benchmarks.pythia import write_tokenizer

CLAIM = 0.10

# Model type and what its configuration says; the vocabulary is the tokenizer's.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "neox-29m": (
        "gpt_neox",
        {
            "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024, "num_attention_heads": 4,
            "vocab_size": 50_304,
        },
    ),
    "neox-35m-deep": (
        "gpt_neox",
        {
            "hidden_size": 384, "num_hidden_layers": 16, "intermediate_size": 1536, "num_attention_heads": 6,
            "vocab_size": 8_192,
        },
    ),
    "pythia-70m": (
        "gpt_neox",
        {
            "hidden_size": 512, "num_hidden_layers": 6, "intermediate_size": 2048, "num_attention_heads": 8,
            "vocab_size": 50_304,
        },
    ),
    "pythia-160m": (
        "gpt_neox",
        {
            "hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "num_attention_heads": 12,
            "vocab_size": 50_304,
        },
    ),
    "llama-22m": (
        "llama",
        {
            "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1024, "num_attention_heads": 6,
            "num_key_value_heads": 2, "vocab_size": 16_384, "max_position_embeddings": 8_192,
        },
    ),
    "qwen2-16m-tied": (
        "qwen2",
        {
            "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 768, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 50_304, "tie_word_embeddings": True,
        },
    ),
    "llama-20m-151k": (
        "llama",
        {
            "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True,
        },
    ),
    "llama-17m-262k": (
        "llama",
        {
            "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 192, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 262_144, "tie_word_embeddings": True,
        },
    ),
    "gpt2-6m": (
        "gpt2",
        {
            "n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 1024, "vocab_size": 8_192,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        },
    ),
    "gemma2-7m": (
        "gemma2",
        {
            "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 768, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 16_384,
        },
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One setting of one phase; ``quick`` ones are also a test."""

    phase: str
    model: str
    settings: dict[str, Any]
    quick: bool = False


def _teacher(model: str, *, quick: bool = False, **settings: Any) -> Case:
    usual = {
        "sequence_length": 128,
        "teacher_batch": 4,
        "layer_by_layer": False,
        "precision": "fp32",
        "keep_memory": False,
    }
    return Case("teacher", model, {**usual, **settings}, quick)


def _student(model: str, *, quick: bool = False, **settings: Any) -> Case:
    usual = {
        "sequence_length": 128,
        "student_batch": 4,
        "gradient_accumulation": 1,
        "gradient_checkpointing": False,
        "optimizer": "adamw",
        "precision": "fp32",
        "keep_memory": False,
    }
    return Case("student", model, {**usual, **settings}, quick)


CASES = (
    _teacher("neox-29m", quick=True),
    _teacher("neox-29m", layer_by_layer=True, quick=True),
    _teacher("neox-35m-deep", layer_by_layer=True),
    _teacher("llama-22m", sequence_length=512),
    _teacher("pythia-70m"),
    _teacher("pythia-70m", teacher_batch=16),
    _teacher("pythia-70m", layer_by_layer=True),
    _teacher("pythia-70m", precision="bf16"),
    _teacher("pythia-70m", precision="bf16", layer_by_layer=True),
    _teacher("pythia-160m", layer_by_layer=True),
    _teacher("llama-20m-151k"),
    _teacher("llama-20m-151k", layer_by_layer=True),
    _student("neox-35m-deep", quick=True),
    _student("neox-35m-deep", student_batch=16),
    _student("neox-35m-deep", student_batch=16, gradient_checkpointing=True),
    _student("neox-35m-deep", student_batch=16, precision="bf16"),
    _student("neox-35m-deep", optimizer="adamw-8bit", student_batch=8),
    _student("neox-35m-deep", optimizer="adamw-8bit", student_batch=2, gradient_accumulation=4),
    _student("neox-35m-deep", optimizer="adamw-8bit", cpu_offload=True),
    _student("llama-22m", student_batch=16),
    _student("llama-22m", sequence_length=512, gradient_checkpointing=True),
    _student("qwen2-16m-tied"),
    _student("qwen2-16m-tied", student_batch=2, gradient_accumulation=2),
    _student("qwen2-16m-tied", optimizer="adamw-8bit", quick=True),
    _student("llama-20m-151k", student_batch=8),
    _student("llama-20m-151k", optimizer="adamw-8bit", student_batch=8),
    _student("gpt2-6m", student_batch=16),
    _student("gemma2-7m", student_batch=8),
    _student("pythia-70m"),
    _student("pythia-70m", student_batch=16),
    _student("pythia-70m", optimizer="adamw-8bit", gradient_checkpointing=True),
    _student("pythia-70m", optimizer="adamw-8bit", student_batch=1, gradient_accumulation=4),
    # Files in another format of the same width: converted, and so memory of the process's own.
    _teacher("llama-22m@float16", precision="bf16"),
    _teacher("llama-22m@bfloat16", precision="bf16"),
    _student("llama-22m@float16", optimizer="adamw-8bit", cpu_offload=True),
    # Long rows, many micro-batches, and a vocabulary that is larger than all the rest.
    _teacher("llama-22m", sequence_length=4096, teacher_batch=1),
    _student("llama-22m", sequence_length=4096, student_batch=1, gradient_checkpointing=True),
    _student("llama-22m", sequence_length=64, gradient_accumulation=8),
    _teacher("llama-17m-262k"),
    _student("llama-17m-262k", optimizer="adamw-8bit", precision="bf16"),
    # Adapters: whole, streamed, and with activations of which some are blocks of the heap.
    _student("llama-22m", sequence_length=64, student_batch=8, lora_rank=16),
    _student("llama-22m", sequence_length=512, student_batch=1, gradient_accumulation=8, lora_rank=16),
    _student(
        "llama-22m",
        sequence_length=64,
        student_batch=8,
        lora_rank=16,
        student_layer_by_layer=True,
        gradient_checkpointing=True,
    ),
    # Freed memory is kept.
    _teacher("llama-17m-262k", keep_memory=True),
    _student("llama-17m-262k", student_batch=2, lora_rank=16, keep_memory=True),
    _student("llama-17m-262k", student_batch=2, optimizer="adamw-8bit", keep_memory=True),
    _teacher("neox-29m", keep_memory=True),
    _teacher("pythia-70m", teacher_batch=16, keep_memory=True),
    _teacher("pythia-70m", layer_by_layer=True, keep_memory=True),
    _student("neox-35m-deep", keep_memory=True),
    _student("pythia-70m", keep_memory=True),
    _student("llama-20m-151k", optimizer="adamw-8bit", student_batch=8, keep_memory=True),
)


def make_model(name: str, folder: Path) -> Path:
    """Write a model with random weights, and a tokenizer whose ids fill its vocabulary, unless they are there.

    Args:
        name: of SHAPES; ``@float16`` behind it is the format of the file, float32 without.
        folder: where models are.
    """
    path = folder / name
    if (path / "tokenizer.json").is_file():
        return path
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape, _, stored = name.partition("@")
    kind, values = SHAPES[shape]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, bos_token_id=0, eos_token_id=0, pad_token_id=0, **values)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, stored or "float32")).save_pretrained(path)
    write_tokenizer(path, values["vocab_size"])
    return path


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Run one case; the row holds what is needed to do it again."""
    model = str(make_model(case.model, folder))
    config = RunConfig.parse({"teacher": model, "student": model, "threads": 1, "device": "cpu", **case.settings})
    rates = cautious_rates("cpu", 1)
    trial = try_phase(case.phase, plan(config, machine=rates, strict=False), rates, folder)
    return {
        "phase": case.phase,
        "model": case.model,
        "settings": case.settings,
        "predicted_bytes": trial.predicted_bytes,
        "measured_bytes": trial.peak_bytes,
        "ratio": round(trial.predicted_bytes / max(1, trial.peak_bytes), 4),
        "seconds": round(trial.seconds, 1),
        "problem": trial.problem,
    }


def _chosen(quick: bool, only: list[str], changed: list[str]) -> list[Case]:
    """The cases to run: those that the words choose, with some settings changed; each is run once."""
    chosen: dict[str, Case] = {}
    for case in CASES:
        line = f"{case.phase} {case.model} {_words(case.settings)}"
        if (case.quick or not quick) and all(word in line for word in only):
            settings = {**case.settings, **dict(word.split("=", 1) for word in changed)}
            chosen.setdefault(f"{case.phase} {case.model} {_words(settings)}", replace(case, settings=settings))
    return list(chosen.values())


def _words(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def main(words: list[str] | None = None) -> int:
    """Run the matrix; 1 when a prediction is further off than is claimed."""
    parser = argparse.ArgumentParser(description="Predicted and measured peaks.")
    parser.add_argument("--folder", type=Path, required=True, help="for models and temporary runs, about 2 GB")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="only the few that are also a test")
    parser.add_argument("--only", nargs="+", default=[], help="only cases whose line has all of these in it")
    parser.add_argument("--set", nargs="+", default=[], metavar="SETTING=VALUE", help="change the cases so")
    arguments = parser.parse_args(words)
    rows = []
    for case in _chosen(arguments.quick, arguments.only, arguments.set):
        row = measure(case, arguments.folder)
        rows.append(row)
        predicted, measured = row["predicted_bytes"] / 2**20, row["measured_bytes"] / 2**20
        print(
            f"{row['ratio']:5.3f}  {row['phase']:7} {row['model']:15} predicted {predicted:6.0f} MiB, "
            f"measured {measured:6.0f} MiB  {_words(row['settings'])}"
            f"{'  PROBLEM: ' + row['problem'] if row['problem'] else ''}",
            flush=True,
        )
    if not rows:
        parser.error("no case is chosen by these words")
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    print(f"{len(rows)} settings; the worst is {worst['ratio'] - 1:+.1%}: {worst['phase']} {worst['model']}")
    if arguments.json:
        machine = hardware.detect(arguments.folder)
        told = {"cores": machine.cores, "instruction_sets": machine.cpu_features, "ram_bytes": machine.ram_bytes}
        results = {"claim": CLAIM, "rows": rows, "machine": told, "versions": versions()}
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(any(row["problem"] or abs(row["ratio"] - 1) > CLAIM for row in rows))


if __name__ == "__main__":
    sys.exit(main())
