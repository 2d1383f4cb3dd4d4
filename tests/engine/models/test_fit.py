"""Files that cannot become a model are told from those that can by their headers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import ModelError
from engine.model_files.demo import DEMO_TEACHER
from engine.model_files.spec import read_spec
from engine.models.fit import check_fit
from tests.engine.models.architectures import ARCHITECTURES, tiny_architecture
from tests.tiny import tiny_model

UP = "model.layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2", "gemma2", "opt", "mixtral"])
def test_a_model_as_it_was_saved_fits(name: str) -> None:
    check_fit(tiny_architecture(name))
    read_spec(tiny_architecture(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_fits_and_is_described(name: str) -> None:
    check_fit(tiny_architecture(name))
    read_spec(tiny_architecture(name))


def test_the_demos_teacher_fits() -> None:
    check_fit(Path(DEMO_TEACHER))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(UP), f"{UP} is in no file"),
        (lambda tensors: tensors.update({UP: torch.zeros(64, 31)}), r"\(64, 31\) in the files and \(64, 32\)"),
        (lambda tensors: tensors.update({UP: torch.zeros(64, 32, dtype=torch.int8)}), "whole numbers"),
        (lambda tensors: tensors.update({UP: torch.zeros(64, 32).to(torch.float8_e4m3fn)}), "F8_E4M3"),
    ],
)
def test_tensors_that_do_not_fill_the_model_are_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_model("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=said):
        check_fit(folder)


def test_tensors_that_the_model_does_not_know_do_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_model("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "more": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    check_fit(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": 2}, "k_proj.weight is"),
        ({"intermediate_size": 65}, "in the files and"),
        ({"attention_bias": True}, "is in no file"),
        ({"hidden_act": "wish"}, "cannot be built"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_parameters": 5}, "cannot be built"),
        ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}}, "the name 'foo' is unknown"),
        ({"num_attention_heads": 3}, "cannot be built"),
        ({"dtype": "float7"}, "cannot be built"),
    ],
)
def test_a_configuration_that_lies_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_model("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=said) as caught:
        check_fit(folder)
    assert caught.value.todo
