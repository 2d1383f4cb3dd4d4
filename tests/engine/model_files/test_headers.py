"""A header that is damaged, or says what cannot be, is refused in a sentence; never a crash, never much memory."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import ModelError
from engine.model_files.vocabulary import read_vocabulary
from engine.model_files.weight_files import read_tensors
from tests.tiny import tiny_model, tiny_tokenizer_folder

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(folder: Path, header: object, data: bytes = bytes(24), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text + data)
    return folder


def test_a_good_header_is_read(tmp_path: Path) -> None:
    assert read_tensors(write(tmp_path, {"a": GOOD}))["a"].shape == (2, 3)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {**GOOD, "shape": [2, 4]}},
        {"a": {**GOOD, "shape": [-2, -3]}},
        {"a": {**GOOD, "shape": ["2", 3]}},
        {"a": {**GOOD, "shape": [2.0, 3.0]}},
        {"a": {**GOOD, "shape": None}},
        {"a": {**GOOD, "data_offsets": [24, 0]}},
        {"a": {**GOOD, "data_offsets": [0]}},
        {"a": {**GOOD, "data_offsets": [-4, 20]}},
        {"a": {**GOOD, "dtype": 5}},
        {"a": {"shape": []}},
        {"a": 5},
        [],
        b"[" * 100_000,
        b"\xff\xfe",
        b"",
    ],
)
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(ModelError) as caught:
        read_tensors(write(tmp_path, header))
    assert str(tmp_path) in caught.value.what


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**40, 2**62, 2**64 - 1])
def test_a_length_that_is_not_the_headers_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ModelError, match="safetensors"):
        read_tensors(write(tmp_path, {"a": GOOD}, length=length))


@pytest.mark.parametrize("weight_map", [{"a": "../b.safetensors"}, {"a": "/etc/passwd"}, {"a": 5}, 5, [], {}])
def test_an_index_names_files_of_its_own_folder_only(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    write(tmp_path, {"a": GOOD}).joinpath("model.safetensors").rename(tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="index"):
        read_tensors(tmp_path / "m")


@given(place=st.floats(0, 0.05), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_of_a_header_is_a_sentence_or_another_name(tmp_path: Path, place: float, bit: int) -> None:
    data = bytearray((tiny_model("llama") / "model.safetensors").read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    (tmp_path / "model.safetensors").write_bytes(data)
    with contextlib.suppress(ModelError):
        read_tensors(tmp_path)


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    file=st.sampled_from(["tokenizer.json", "tokenizer_config.json"]),
    key=st.sampled_from(["model", "added_tokens", "vocab", "merges", "eos_token", "added_tokens_decoder"]),
    value=json_values,
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_tokenizers_files_hold_it_is_read_or_refused(
    tmp_path: Path, file: str, key: str, value: object
) -> None:
    folder = tmp_path / "t"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny_tokenizer_folder(), folder)
    content = json.loads((folder / file).read_text())
    (content["model"] if key in ("vocab", "merges") and "model" in content else content)[key] = value
    (folder / file).write_text(json.dumps(content))
    with contextlib.suppress(ModelError):
        assert read_vocabulary(folder).size > 0
