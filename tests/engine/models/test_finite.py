"""NaN and infinity in a model's files are found when the weights are read, whichever way they are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelError, Stopped
from engine.models.finite import check_files, check_numbers
from engine.models.fit import check_fit
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from tests.tiny import tiny_model

LAYER = "model.layers.3.mlp.down_proj.weight"  # behind the layers that a streamed teacher tries first


def damaged(folder: Path, name: str, value: float, *, place: int = -1) -> Path:
    """A model of which one number is no number."""
    made = shutil.copytree(tiny_model("llama"), folder)
    weights = load_file(made / "model.safetensors")
    weights[name].view(-1)[place] = value
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    return made


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [LAYER, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, name: str, bad: float) -> None:
    folder = damaged(tmp_path / "model", name, bad)
    with pytest.raises(ModelError, match=rf"The weight {name} in .* holds NaN or infinity"):
        check_files(folder, check_fit(folder), safe_point=lambda: None)


def test_a_whole_model_is_passed_and_the_look_can_be_stopped() -> None:
    folder = tiny_model("llama")
    check_files(folder, check_fit(folder), safe_point=lambda: None)

    def stop() -> None:
        raise Stopped("The run was stopped.")

    with pytest.raises(Stopped):
        check_files(folder, check_fit(folder), safe_point=stop)


def test_tensors_that_no_weight_is_made_of_are_not_looked_at(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.rotary_emb.mask"] = torch.full((3,), -float("inf"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    check_files(folder, check_fit(folder), safe_point=lambda: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("place", [0, 40_000, 99_999])
def test_every_piece_of_a_large_tensor_is_looked_at(dtype: torch.dtype, place: int) -> None:
    tensor = torch.ones(100_000, dtype=dtype)
    whole_numbers = torch.ones(3, dtype=torch.int64)
    check_numbers([("good", tensor), ("whole", whole_numbers), ("none", tensor[:0])], Path("somewhere"))
    tensor[place] = float("nan")
    with pytest.raises(ModelError) as caught:
        check_numbers([("bad", tensor.view(100, 1000))], Path("somewhere"))
    assert ("--precision fp32" in caught.value.todo) == (dtype.itemsize == 2)


def test_a_teacher_is_looked_at_when_it_is_loaded_and_a_streamed_one_when_a_layer_is_first_read(tmp_path: Path) -> None:
    folder = damaged(tmp_path / "model", LAYER, float("nan"))
    with pytest.raises(ModelError, match=LAYER):
        ResidentTeacher(folder, dtype=torch.float32)
    streamed = StreamedTeacher(folder, dtype=torch.float32, device=torch.device("cpu"))
    try:
        with pytest.raises(ModelError, match=LAYER):
            streamed.last_hidden_states([torch.ones(1, 4, dtype=torch.int64)])
    finally:
        streamed.close()
