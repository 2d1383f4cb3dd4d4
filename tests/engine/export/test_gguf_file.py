"""A GGUF file says what the folder says: read back, its logits are the folder's within the type's rounding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from engine.cli import export as command
from engine.errors import FolderError, ModelError
from engine.export import write_gguf
from engine.model_files.gguf.header import read_header
from engine.model_files.weight_files import read_tensors
from tests.engine.model_files.gguf.exact_models import save_exact
from tests.tiny import VOCAB_SIZE, tiny_model, tiny_tokenizer

_SHARED = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "initializer_range": 0.15,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama-untied": {"tie_word_embeddings": False},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True, "vocab_size": VOCAB_SIZE + 24},
    "qwen3": {"tie_word_embeddings": False},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "phi3": {"num_key_value_heads": 4},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 128, "vocab_size": VOCAB_SIZE},
}


def folder_of(name: str, tmp_path: Path, **more: Any) -> Path:
    kind = name.split("-")[0]
    given = MODELS[name] if kind == "gpt2" else _SHARED | MODELS[name]
    config = AutoConfig.for_model(kind, **{**given, **more})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits.float()


def read_back(loader: Any, folder: Path, **more: Any) -> Any:
    """Return the model that transformers reads from out.gguf; it asks for accelerate first, and does not need it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("transformers.modeling_utils.is_accelerate_available", lambda *_: True)
        return loader.from_pretrained(folder, gguf_file="out.gguf", **more)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_logits_read_back_are_the_folders(name: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    write_gguf(folder, tmp_path / "out.gguf", weight_type="f16")
    ids = torch.randint(2, VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(1))
    # GGUF does not say everything that config.json does; Mistral is a Llama there.
    given = {} if name == "mistral" else {"config": AutoConfig.from_pretrained(folder)}
    ours = read_back(AutoModelForCausalLM, tmp_path, dtype=torch.float32, **given)
    wanted = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), ids)
    assert (logits(ours, ids) - wanted).abs().max() < 0.02 * wanted.std()


@pytest.mark.filterwarnings("ignore")
def test_text_becomes_the_same_ids(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)
    write_gguf(folder, tmp_path / "out.gguf")
    text = "A small  model,\n\tlearns 1234 from — records. <|endoftext|>The end"
    wanted = AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert read_back(AutoTokenizer, tmp_path)(text).input_ids == wanted


@pytest.mark.parametrize(("weight_type", "share"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 1e-2)])
def test_each_tensor_is_within_the_types_rounding(weight_type: str, share: float, tmp_path: Path) -> None:
    folder = folder_of("qwen2", tmp_path)
    write_gguf(folder, tmp_path / "out.gguf", weight_type=weight_type)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    source = {tensor_name: info for tensor_name, info in read_tensors(folder).items() if "lm_head" not in tensor_name}
    assert len(found) == len(source)
    info = source["model.layers.1.mlp.down_proj.weight"]
    wanted = np.fromfile(info.file, dtype="<f4", count=info.numel, offset=info.offset).reshape(info.shape)
    tensor = found["blk.1.ffn_down.weight"]
    given = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
    assert np.abs(given - wanted).max() < share * np.abs(wanted).max()
    assert found["blk.1.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_gpt_neox_has_all_tensors_of_llama_cpp_and_its_parts_in_order(tmp_path: Path) -> None:
    folder = tiny_model("gpt_neox")
    write_gguf(folder, tmp_path / "out.gguf", weight_type="f16")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert {"token_embd.weight", "output.weight", "output_norm.weight", "blk.3.attn_qkv.bias"} <= set(found)
    info = read_tensors(folder)["gpt_neox.layers.0.attention.query_key_value.weight"]
    source = np.fromfile(info.file, dtype="<f4", count=info.numel, offset=info.offset).reshape(info.shape)
    values = gguf.quants.dequantize(found["blk.0.attn_qkv.weight"].data, found["blk.0.attn_qkv.weight"].tensor_type)
    queries = np.concatenate([source[:16], source[48:64]])  # two heads of 16: query, key, value, query, key, value
    assert np.allclose(values[:32], queries, atol=1e-3)


def test_llama3_positions_are_written_as_factors(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, rope_parameters=_LLAMA3)
    write_gguf(folder, tmp_path / "out.gguf")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    factors = torch.tensor(found["rope_freqs.weight"].data.tolist())
    plain = 1 / 10_000 ** (torch.arange(0, 8, 2) / 8)
    rotary = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
    assert torch.allclose(plain / factors, rotary, rtol=1e-5)


TAKEN_FOR_GRANTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another activation": ("llama", {"hidden_act": "gelu"}, "hidden_act gelu"),
    "another activation of Gemma": ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation gelu"),
    "another activation of GPT-2": ("gpt2", {"activation_function": "relu"}, "activation_function relu"),
    "scores scaled by layer": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx True",
    ),
    "biases without a place": ("qwen3", {"attention_bias": True}, "attention_bias True"),
    "a head of its own": ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
    "no softcapping": ("gemma2", {"attn_logit_softcapping": None}, "no softcapping"),
    "attention in both directions": (
        "gemma3_text",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention True",
    ),
    "heads narrower than the width": ("phi3", {"head_dim": 4}, "4 heads of 4 beside a hidden size of 32"),
    "half of a head rotated": ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    "Llama 3's factors elsewhere": ("qwen2", {"rope_parameters": _LLAMA3}, "of the kind llama3"),
    "dynamic positions": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "of the kind dynamic",
    ),
    "another YaRN": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "beta_fast": 16.0}},
        "beta_fast 16",
    ),
}


@pytest.mark.parametrize("case", TAKEN_FOR_GRANTED)
def test_a_setting_that_llama_cpp_does_not_read_is_refused(case: str, tmp_path: Path) -> None:
    name, settings, words = TAKEN_FOR_GRANTED[case]
    folder = folder_of(name, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(ModelError) as caught:
        write_gguf(folder, tmp_path / "out.gguf")
    assert words in caught.value.paragraph()
    assert not list(tmp_path.glob("*.gguf"))


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(ModelError, match="type mamba cannot be written as GGUF"):
        write_gguf(folder, tmp_path / "out.gguf")
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"pre_tokenizer": {"type": "Whitespace"}}))
    with pytest.raises(ModelError) as caught:
        write_gguf(folder, tmp_path / "out.gguf")
    assert caught.value.why == "It is BPE without bytes."
    assert not list(tmp_path.glob("*.gguf")) + list(tmp_path.glob(".*.tmp"))


def test_command_writes_beside_the_student_and_keeps_what_is_there(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "a-run"
    shutil.copytree(tiny_model("llama"), run / "student")
    assert command.main([str(run), "--format", "gguf", "--type", "q8_0"]) == 0
    assert (run / "a-run-q8_0.gguf").is_file()
    assert command.main([str(run), "--format", "gguf", "--type", "q8_0"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert command.main([str(run), "--format", "gguf", "--type", "q8_0", "--force"]) == 0
    assert command.main([str(run / "student"), "--format", "hf", "--out", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / "model.safetensors").is_file()
    assert command.main([str(run), "--format", "ollama"]) == 0
    words = (run / "ollama" / "Modelfile").read_text()
    assert words.startswith('FROM ./model-f16.gguf\nTEMPLATE """{{ .Prompt }}"""\n')


def test_a_type_that_a_folder_does_not_get_is_refused(tmp_path: Path, capsys: Any) -> None:
    """It was passed over: --format hf --type f16 copied bfloat16."""
    model = str(tiny_model("llama", dtype="bfloat16"))
    for wanted in ("f16", "q8_0"):
        assert command.main([model, "--format", "hf", "--type", wanted, "--out", str(tmp_path / "copy")]) == 2
        said = capsys.readouterr().err
        assert f"--type {wanted}" in said
        assert "as they are stored, in bfloat16" in said
    assert not (tmp_path / "copy").exists()
    assert command.main([model, "--format", "hf", "--type", "bf16", "--out", str(tmp_path / "copy")]) == 0
    file = tmp_path / "llama-f16.gguf"
    write_gguf(Path(model), file)
    assert command.main([str(file), "--format", "hf", "--type", "bf16", "--out", str(tmp_path / "other")]) == 2
    assert "in float16" in capsys.readouterr().err
    assert command.main([str(file), "--format", "hf", "--type", "f16", "--out", str(tmp_path / "other")]) == 0


def test_folder_without_a_student_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(FolderError, match="has no student yet"):
        command.student_folder(tmp_path)
    with pytest.raises(FolderError, match="There is no folder"):
        command.student_folder(tmp_path / "nowhere")


def test_a_window_that_llama_cpp_does_not_have_is_told_and_bounds_ollamas_context(tmp_path: Path, capsys: Any) -> None:
    folder = folder_of("mistral", tmp_path, sliding_window=16)
    assert command.main([str(folder), "--format", "gguf", "--out", str(tmp_path / "out.gguf")]) == 0
    assert "beyond\n16 tokens its answers differ" in capsys.readouterr().out
    assert command.main([str(folder), "--format", "ollama", "--out", str(tmp_path / "ollama")]) == 0
    assert "PARAMETER num_ctx 16\n" in (tmp_path / "ollama" / "Modelfile").read_text()


@pytest.mark.parametrize(
    ("kind", "slides", "is_told"),
    [
        ("gemma2", "sf", False),
        ("gemma2", "ff", False),
        ("gemma2", "ss", True),
        ("gemma2", "fs", True),
        ("gemma3_text", "ff", False),
        ("gemma3_text", "sssssf", False),
        ("gemma3_text", "ss", True),  # the usual order of two layers, which llama.cpp could not hold
        ("gemma3_text", "sf", True),
    ],
)
def test_windows_that_other_programs_may_not_read_are_told(
    kind: str, slides: str, is_told: bool, tmp_path: Path, capsys: Any
) -> None:
    called = {"s": "sliding_attention", "f": "full_attention"}
    types = [called[one] for one in slides]
    folder = folder_of(kind, tmp_path, num_hidden_layers=len(types), layer_types=types)
    assert command.main([str(folder), "--format", "gguf", "--out", str(tmp_path / "out.gguf")]) == 0
    assert ("another order" in capsys.readouterr().out) is is_told


def test_a_qwen2_of_another_width_is_written_as_a_llama(tmp_path: Path) -> None:
    """llama.cpp's Qwen 2 has heads as wide as the hidden states together."""
    for name, size in (("qwen2", 8), ("llama", 16)):
        config = AutoConfig.for_model("qwen2", **{**_SHARED, "head_dim": size})
        folder = save_exact(
            AutoModelForCausalLM.from_config(config, dtype=torch.float32), tmp_path / f"heads-of-{size}"
        )
        write_gguf(folder, tmp_path / "out.gguf")
        assert read_header(tmp_path / "out.gguf").metadata["general.architecture"] == name
