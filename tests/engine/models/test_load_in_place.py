from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import ModelError
from engine.model_files.spec import read_spec
from engine.models import load_in_place as module
from engine.models.load import load_causal_lm
from engine.models.load_in_place import load_in_place, move_weights
from engine.student.export import export_student
from tests.tiny import ARCHITECTURES, tiny_model


class Places:
    """Makes memory, and remembers how much."""

    def __init__(self) -> None:
        self.made: list[Tensor] = []

    def __call__(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        self.made.append(torch.full(shape, float("nan"), dtype=dtype))
        return self.made[-1]


def stored_as(folder: Path, dtype: torch.dtype, out: Path) -> Path:
    """A copy of a model folder with its weights in another format."""
    shutil.copytree(folder, out)
    weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))
    return out


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_model_is_transformers_own_in_the_places_that_were_given(
    architecture: str, stored: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored_as(tiny_model(architecture), stored, tmp_path / "model")
    theirs = load_causal_lm(folder, dtype=torch.float32)
    monkeypatch.setattr(module, "load_causal_lm", None)  # each of these is loaded without transformers' own loading
    places = Places()
    ours = load_in_place(folder, dtype=torch.float32, new_tensor=places)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert dict(ours.named_buffers()).keys() == dict(theirs.named_buffers()).keys()
    assert all(torch.equal(tensor, dict(theirs.named_buffers())[name]) for name, tensor in ours.named_buffers())
    made = {tensor.data_ptr() for tensor in places.made}
    parameters = list(ours.parameters())
    assert {parameter.data_ptr() for parameter in parameters} <= made
    assert [p.requires_grad for p in parameters] == [p.requires_grad for p in theirs.parameters()]
    assert len(parameters) == len(list(theirs.parameters()))  # tied ones are shared
    assert ours.training is theirs.training is False


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_student_is_saved_as_after_transformers_own_loading(architecture: str, tmp_path: Path) -> None:
    folder = tiny_model(architecture)
    for name, load in (
        ("theirs", lambda: load_causal_lm(folder, dtype=torch.float32)),
        ("ours", lambda: load_in_place(folder, dtype=torch.float32, new_tensor=Places())),
    ):
        export_student(load(), replace(read_spec(folder), dtype="bfloat16"), tmp_path / name, "a card")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    assert {entry.name for entry in ours.iterdir()} == {entry.name for entry in theirs.iterdir()}
    for entry in theirs.iterdir():
        assert (ours / entry.name).read_bytes() == entry.read_bytes(), entry.name


def test_weights_that_are_converted_are_loaded_by_transformers_and_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2_moe", vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4,
    )  # fmt: skip
    made = AutoModelForCausalLM.from_config(config)
    made.save_pretrained(tmp_path / "model")
    called = []
    monkeypatch.setattr(
        module, "load_causal_lm", lambda *args, **more: called.append(1) or load_causal_lm(*args, **more)
    )
    places = Places()
    model = load_in_place(tmp_path / "model", dtype=torch.float32, new_tensor=places)
    assert called
    assert {p.data_ptr() for p in model.parameters()} == {tensor.data_ptr() for tensor in places.made}
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_missing_weight_is_refused_in_the_usual_words(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"do not hold model\.norm\.weight"):
        load_in_place(folder, dtype=torch.float32, new_tensor=Places())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells mapped files in /proc")
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_moved_weights_need_no_file_and_stay_tied(architecture: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model(architecture), tmp_path / "model")  # a file that no other test has mapped

    def is_mapped() -> bool:
        return str(folder / "model.safetensors") in Path("/proc/self/maps").read_text()

    model = load_causal_lm(folder, dtype=torch.float32)
    if not is_mapped():
        pytest.skip("safetensors copied the weights")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    move_weights(model, Places())
    assert not is_mapped()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == bool(model.config.tie_word_embeddings)
