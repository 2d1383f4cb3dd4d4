"""A GGUF file as a model: the same logits as the folder that it was made of, streamed and whole, within its type."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli import export
from engine.export import write_gguf
from engine.model_files.hub import resolve_model
from engine.model_files.spec import fingerprint, read_spec
from engine.model_files.vocabulary import read_vocabulary
from engine.models.checkpoint import Checkpoint
from engine.models.load import load_causal_lm, load_tokenizer
from engine.models.load_in_place import in_memory, load_in_place
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from tests.engine.export.test_gguf_file import _LLAMA3, MODELS, folder_of
from tests.tiny import VOCAB_SIZE, tiny_model

CPU = torch.device("cpu")
IDS = torch.randint(2, VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(1))


def gguf_of(name: str, tmp_path: Path, weight_type: str = "f16", **more: Any) -> tuple[Path, Path]:
    """A model's folder, and the GGUF file made of it."""
    folder = tiny_model("gpt_neox") if name == "gpt_neox" else folder_of(name, tmp_path, **more)
    write_gguf(folder, tmp_path / "out.gguf", weight_type=weight_type)
    return folder, tmp_path / "out.gguf"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def difference(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    columns = min(ours.shape[-1], wanted.shape[-1])
    return float((ours - wanted)[..., :columns].abs().max() / wanted.std())


@pytest.mark.parametrize("name", [*MODELS, "gpt_neox"])
def test_a_file_is_the_model_that_it_was_made_of(name: str, tmp_path: Path) -> None:
    folder, file = gguf_of(name, tmp_path)
    ours = load_causal_lm(resolve_model(file), dtype=torch.float32)
    wanted = logits(load_causal_lm(folder, dtype=torch.float32))
    assert difference(logits(ours), wanted) < 0.02
    in_place = load_in_place(resolve_model(file), dtype=torch.float32, new_tensor=in_memory)
    assert torch.equal(logits(in_place), logits(ours))


@pytest.mark.parametrize(
    "weight_type", ["q8_0", pytest.param("f16", marks=pytest.mark.slow), pytest.param("bf16", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["llama-untied", "qwen2", "gemma2", "gpt2", "gpt_neox"])
def test_streamed_and_whole_give_the_same_hidden_states_bit_for_bit(
    name: str, weight_type: str, tmp_path: Path
) -> None:
    folder = resolve_model(gguf_of(name, tmp_path, weight_type)[1])
    for dtype in (torch.float32, torch.bfloat16):
        whole = ResidentTeacher(folder, dtype=dtype)
        streamed = StreamedTeacher(folder, dtype=dtype, device=CPU)
        expected, found = whole.last_hidden_states([IDS]), streamed.last_hidden_states([IDS])
        assert torch.equal(expected[0], found[0])
        assert torch.equal(whole.logits(expected[0][0]), streamed.logits(found[0][0]))
        streamed.close()


@pytest.mark.parametrize("scaling", ["llama3", "linear", "yarn"])
def test_scaled_positions_come_back(scaling: str, tmp_path: Path) -> None:
    rope = {
        "llama3": _LLAMA3,
        "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        "yarn": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    }[scaling]
    folder, file = gguf_of("llama", tmp_path, rope_parameters=rope)
    ours = load_causal_lm(resolve_model(file), dtype=torch.float32)
    wanted = load_causal_lm(folder, dtype=torch.float32)
    assert torch.allclose(ours.model.rotary_emb.inv_freq, wanted.model.rotary_emb.inv_freq, rtol=1e-5)
    assert difference(logits(ours), logits(wanted)) < 0.02


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_the_tokenizer_is_the_folders(name: str, tmp_path: Path) -> None:
    folder, file = gguf_of(name, tmp_path)
    ours, theirs = load_tokenizer(resolve_model(file)), load_tokenizer(folder)
    text = "A small  model,\n\tlearns 1234 from — records. <|endoftext|>The end 😀"
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.decode(ours(text).input_ids) == theirs.decode(theirs(text).input_ids)
    read, wanted = read_vocabulary(resolve_model(file)), read_vocabulary(folder)
    assert (read.sha, read.size, read.eos_id, read.pad_id) == (wanted.sha, wanted.size, wanted.eos_id, wanted.pad_id)


def test_any_range_of_a_tensor_is_that_range_of_the_whole(tmp_path: Path) -> None:
    for name in ("llama-untied", "gpt2", "gpt_neox", "gemma2"):
        (tmp_path / name).mkdir()
        checkpoint = Checkpoint(resolve_model(gguf_of(name, tmp_path / name, "q8_0")[1]))
        for tensor, info in checkpoint.tensors.items():
            whole = torch.empty(info.numel)
            checkpoint.read(tensor, whole)
            for first, count in ((0, 1), (info.numel // 3, info.numel // 2), (info.numel - 7, 7)):
                part = torch.empty(count)
                checkpoint.read(tensor, part, first=first)
                assert torch.equal(part, whole[first : first + count]), tensor
        checkpoint.close()


def test_plain_numbers_are_read_as_those_of_safetensors_and_known_by_the_files_own_word(tmp_path: Path) -> None:
    _, file = gguf_of("llama", tmp_path)
    tensors = read_spec(file).tensors
    plain = {name: info.stored_as for name, info in tensors.items() if info.decoder is None}
    assert plain["model.layers.0.mlp.up_proj.weight"] == plain["model.embed_tokens.weight"] == "F16"
    assert plain["model.norm.weight"] == "F32"
    moved = {name.split(".")[-2] for name in tensors.keys() - plain.keys()}
    assert moved == {"q_proj", "k_proj"}


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    _, file = gguf_of("llama", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "another-name.gguf"
    other.write_bytes(file.read_bytes())
    assert fingerprint(read_spec(file)) == fingerprint(read_spec(other))
    assert read_spec(other).name == "another-name"
    data = bytearray(file.read_bytes())
    data[-3] ^= 64
    other.write_bytes(data)
    assert fingerprint(read_spec(file)) != fingerprint(read_spec(other))


def test_a_folder_with_one_file_and_a_blob_without_an_ending_are_models(tmp_path: Path) -> None:
    _, file = gguf_of("llama", tmp_path)
    (tmp_path / "alone").mkdir()
    blob = tmp_path / "alone" / "sha256-0123"
    os.link(file, blob)
    assert read_spec(blob).num_layers == 3
    os.link(file, tmp_path / "alone" / "model.gguf")
    assert read_spec(tmp_path / "alone").num_layers == 3


def test_a_gguf_file_becomes_a_folder_of_safetensors(tmp_path: Path) -> None:
    _, file = gguf_of("llama", tmp_path)
    assert export.main([str(file), "--format", "hf"]) == 0
    written = load_causal_lm(tmp_path / "out-hf", dtype=torch.float32)
    assert torch.equal(logits(written), logits(load_causal_lm(resolve_model(file), dtype=torch.float32)))
    assert export.main([str(file), "--format", "gguf", "--type", "q8_0"]) == 0
    assert read_spec(tmp_path / "out-q8_0.gguf").num_layers == 3


def test_a_gguf_file_becomes_another_one(tmp_path: Path) -> None:
    _, file = gguf_of("llama", tmp_path)
    write_gguf(resolve_model(file), tmp_path / "again.gguf", weight_type="f16")
    first, second = (
        load_causal_lm(resolve_model(each), dtype=torch.float32) for each in (file, tmp_path / "again.gguf")
    )
    assert torch.equal(logits(first), logits(second))
