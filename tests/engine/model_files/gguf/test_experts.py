"""Mixtures of experts from GGUF files: the logits of the folder that a file was made of, whole and streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import ModelError
from engine.export import write_gguf
from engine.export.vocabulary import add_vocabulary
from engine.model_files.gguf.architectures import llama_pairs
from engine.model_files.hub import resolve_model
from engine.model_files.spec import read_spec
from engine.model_files.weight_files import read_tensors
from engine.models.load import load_causal_lm
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from tests.tiny import VOCAB_SIZE, tiny_tokenizer

IDS = torch.randint(2, VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(1))
_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "initializer_range": 0.15, "rope_theta": 10_000.0,
    "tie_word_embeddings": False, "num_experts_per_tok": 2,
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True},
}
_NAMES = {"mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}
_PARTS = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def folder_of(kind: str, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **_SHARED, **MIXTURES[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / kind)
    tiny_tokenizer().save_pretrained(tmp_path / kind)
    return tmp_path / kind


def gguf_of(kind: str, folder: Path, out: Path, *, quant: str = "F16", together: bool = True) -> Path:
    """Write a mixture as llama.cpp's converter does: all experts of a layer in one tensor, or each alone (older)."""
    config = AutoConfig.from_pretrained(folder).to_dict()
    writer = gguf.GGUFWriter(out, _NAMES[kind])
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(8)
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    if kind != "mixtral":
        writer.add_expert_feed_forward_length(32)
    if kind == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(64)
    add_vocabulary(writer, folder, rows=VOCAB_SIZE)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == _NAMES[kind]), 2
    )
    experts: dict[str, dict[int, Any]] = {}
    for name, info in read_tensors(folder).items():
        values = np.fromfile(info.file, dtype="<f4", count=info.numel, offset=info.offset).reshape(info.shape)
        stem, _, ending = name.rpartition(".")
        if ".experts." in name:
            layer, number, part = name.split(".")[2], int(name.split(".")[-3]), _PARTS[name.split(".")[-2]]
            experts.setdefault(f"blk.{layer}.ffn_{part}", {})[number] = values
            continue
        if kind == "mixtral":
            values = llama_pairs(config, name, info.shape[0]).stored(values)
        if name.endswith("shared_expert_gate.weight"):
            values = values.reshape(-1)
        add(writer, f"{names.get_name(stem)}.{ending}", values, quant)
    for name, found in experts.items():
        if together:
            add(writer, f"{name}_exps.weight", np.stack([found[number] for number in sorted(found)]), quant)
        else:
            for number, values in found.items():
                add(writer, f"{name}.{number}.weight", values, quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def add(writer: Any, name: str, values: Any, quant: str) -> None:
    kind = gguf.GGMLQuantizationType["F32" if values.ndim == 1 or "ffn_gate_inp" in name else quant]
    data = gguf.quants.quantize(np.ascontiguousarray(values), kind)
    writer.add_tensor(name, data, raw_dtype=kind)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_file_is_the_mixture_that_it_was_made_of(kind: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path)
    file = gguf_of(kind, folder, tmp_path / "mixture.gguf")
    assert read_spec(file).num_parameters == read_spec(folder).num_parameters
    assert read_spec(file).model_type == kind
    wanted = logits(load_causal_lm(folder, dtype=torch.float32))
    found = logits(load_causal_lm(resolve_model(file), dtype=torch.float32))
    assert (found - wanted).abs().max() < 0.02 * wanted.std()


@pytest.mark.parametrize("quant", ["F16", "Q8_0"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_streamed_and_whole_are_one_mixture_bit_for_bit(kind: str, quant: str, tmp_path: Path) -> None:
    folder = resolve_model(gguf_of(kind, folder_of(kind, tmp_path), tmp_path / "mixture.gguf", quant=quant))
    whole = ResidentTeacher(folder, dtype=torch.float32)
    streamed = StreamedTeacher(folder, dtype=torch.float32, device=torch.device("cpu"))
    expected, found = whole.last_hidden_states([IDS]), streamed.last_hidden_states([IDS])
    assert torch.equal(expected[0], found[0])
    streamed.close()


def test_an_older_file_with_each_expert_alone_is_the_same(tmp_path: Path) -> None:
    folder = folder_of("mixtral", tmp_path)
    files = [gguf_of("mixtral", folder, tmp_path / f"{each}.gguf", together=each) for each in (True, False)]
    first, second = (logits(load_causal_lm(resolve_model(file), dtype=torch.float32)) for file in files)
    assert torch.equal(first, second)


def test_a_mixture_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="type qwen3_moe cannot be written as GGUF"):
        write_gguf(folder_of("qwen3_moe", tmp_path), tmp_path / "out.gguf")
