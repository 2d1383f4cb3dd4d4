"""Which paths a user may choose as a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.model_files.on_disk import is_model, is_model_file, name_of


@pytest.mark.parametrize(
    ("names", "is_one"),
    [
        (["config.json", "model.safetensors"], True),
        (["adapter_config.json", "adapter_model.safetensors"], True),
        (["small-Q8_0.gguf"], True),
        (["small.GGUF"], True),
        (["notes.txt"], False),
        ([], False),
    ],
)
def test_a_folder_is_a_model_by_the_files_in_it(tmp_path: Path, names: list[str], is_one: bool):
    for name in names:
        (tmp_path / name).touch()
    assert is_model(tmp_path) == is_one


def test_a_file_is_a_model_only_where_it_is_all_of_it(tmp_path: Path):
    for name in ("a.gguf", "model.safetensors"):
        (tmp_path / name).touch()
    assert is_model(tmp_path / "a.gguf")
    assert not is_model_file(tmp_path / "model.safetensors")
    assert not is_model(tmp_path / "gone.gguf")


@pytest.mark.parametrize(("file", "name"), [("a.Q4.gguf", "a.Q4"), ("sha256-12ab", "sha256-12ab")])
def test_the_name_of_a_file_that_is_a_model(file: str, name: str):
    assert name_of(Path(file)) == name
