"""Whole runs with models as they are found: padded vocabularies, tied heads, halves, several files, own code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.data.tokens import TokenFile
from tests.end_to_end.program import QUICK, run, write_texts
from tests.tiny import PADDING_ROWS, VOCAB_SIZE, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow


def padded(folder: Path, rows: int) -> Path:
    """A Qwen2 whose embedding has some rows more than there are ids, none of them near nothing."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model("qwen2"))
    config.vocab_size, config.num_hidden_layers, config.tie_word_embeddings = VOCAB_SIZE + rows, 2, False
    config.layer_types = config.layer_types[:2]
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight[VOCAB_SIZE:] += 5.0  # it would say nothing but padding, if it were let
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def own_code(folder: Path) -> Path:
    """A model that transformers does not have, with its code beside it."""
    shutil.copytree(tiny_model("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "architectures": ["HomemadeForCausalLM"],
        "auto_map": {"AutoConfig": "homemade.HomemadeConfig", "AutoModelForCausalLM": "homemade.HomemadeForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "homemade.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class HomemadeConfig(LlamaConfig):\n    model_type = 'homemade'\n"
        "class HomemadeForCausalLM(LlamaForCausalLM):\n    config_class = HomemadeConfig\n"
    )
    return folder


def as_gguf(folder: Path, model: Path, weight_type: str = "q8_0") -> Path:
    """The model as a GGUF file."""
    from engine.export import write_gguf

    file = folder / f"{model.name}.gguf"
    write_gguf(model, file, weight_type=weight_type)
    return file


def in_fp8(folder: Path) -> Path:
    """A Llama with its projections in FP8, a scale for each row."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "_proj.weight" in name]:
        scale = tensors[name].abs().amax(1, keepdim=True) / 448
        tensors |= {name: (tensors[name] / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


CASES: dict[str, Callable[[Path], list[Any]]] = {
    "padded by other amounts": lambda folder: [
        *("--teacher", tiny_model("qwen2"), "--student", padded(folder / "student", 2 * PADDING_ROWS))
    ],
    "bf16 in several files, and streamed": lambda folder: [
        *("--teacher", tiny_model("llama", dtype="bfloat16", shard_bytes=40_000), "--layer_by_layer"),
        *("--student", tiny_model("llama", num_layers=2, dtype="bfloat16")),
    ],
    "untied, cut from the teacher": lambda folder: ["--teacher", tiny_model("gpt_neox"), "--student", "from-teacher"],
    "old names, learned positions": lambda folder: ["--teacher", tiny_model("gpt2"), "--student", "from-teacher"],
    "a GGUF file, streamed and cut": lambda folder: [
        *("--teacher", as_gguf(folder, tiny_model("llama")), "--layer_by_layer", "--student", "from-teacher"),
        *("--student_layers", 2),
    ],
    "two GGUF files": lambda folder: [
        *("--teacher", as_gguf(folder, tiny_model("gpt2"), "f16")),
        *("--student", as_gguf(folder, tiny_model("gpt2", num_layers=2))),
    ],
    "FP8, cut from the teacher": lambda folder: ["--teacher", in_fp8(folder / "fp8"), "--student", "from-teacher"],
    "code of its own": lambda folder: [
        *("--teacher", own_code(folder / "teacher"), "--student", "from-teacher", "--trust_remote_code")
    ],
    "code of its own, streamed": lambda folder: [
        *("--teacher", own_code(folder / "teacher"), "--student", "from-teacher", "--trust_remote_code"),
        "--layer_by_layer",
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_ends_with_a_better_student(tmp_path, case):
    done = run(
        *CASES[case](tmp_path),
        *["--data", write_texts(tmp_path / "data"), "--output_dir", tmp_path / "run", *QUICK],
        *["--steps", 12, "--learning_rate", "1e-2"],
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    before, after = report["student_before"], report["student_after"]
    assert after["holdout_loss"] < before["holdout_loss"]
    assert after["kl_to_teacher"] < before["kl_to_teacher"]
    with TokenFile(tmp_path / "run" / "tokens.h5") as tokens:
        assert tokens.vocab_size == VOCAB_SIZE, "rows of padding are no ids"


def test_padding_takes_no_part_in_what_is_measured(tmp_path):
    """A student whose rows of padding shout is not worse than it is: they are masked in its softmax too."""
    done = run(
        *["--teacher", tiny_model("qwen2"), "--student", padded(tmp_path / "student", 2 * PADDING_ROWS)],
        *["--data", write_texts(tmp_path / "data"), "--output_dir", tmp_path / "run", *QUICK, "--steps", 1],
    )
    assert done.returncode == 0, done.stderr
    before = json.loads((tmp_path / "run" / "report.json").read_text())["student_before"]
    assert before["holdout_loss"] < 12, "log(320) is 5.8; with the padding it would be above 100"
