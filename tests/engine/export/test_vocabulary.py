"""The vocabulary of a GGUF file: its special tokens, its names, and the model's name, by which llama.cpp goes too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from engine.export import write_gguf
from tests.engine.export.test_gguf_file import _SHARED
from tests.engine.export.tokenizers_of import byte_level, sentencepiece


def written(folder: Path, **config: Any) -> dict[str, Any]:
    """The header's values of a tiny llama with the tokenizer in a folder."""
    rows = len(AutoTokenizer.from_pretrained(folder)) + 9
    given = AutoConfig.for_model("llama", **{**_SHARED, "vocab_size": rows, "pad_token_id": None, **config})
    AutoModelForCausalLM.from_config(given, dtype=torch.float32).save_pretrained(folder)
    write_gguf(folder, folder / "out.gguf")
    return {field.name: field.contents() for field in gguf.GGUFReader(folder / "out.gguf").fields.values()}


def test_each_end_of_an_answer_is_in_the_file(tmp_path: Path) -> None:
    told = written(byte_level(tmp_path / "model", "gpt-2"), eos_token_id=[2, 4, 5])
    assert [told[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")] == [2, 4, 5]


def test_a_tokenizer_that_names_no_end_has_the_configurations(tmp_path: Path) -> None:
    told = written(byte_level(tmp_path / "model", "gpt-2", eos_token=None), eos_token_id=[4, 5])
    assert [told[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot")] == [4, 5]


def test_rows_without_a_token_have_names_of_their_own(tmp_path: Path) -> None:
    tokens = written(byte_level(tmp_path / "model", "gpt-2"))["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == len(tokens)
    assert {"[PAD464]", "[[PAD464]]"} <= set(tokens)


@pytest.mark.parametrize(
    ("place", "strips", "name"),
    [
        ("like-Phi-3-mini", False, "like-phi 3-mini"),
        ("PHI3", False, "phi 3"),
        ("a-run/student", False, "a-run"),
        ("a-run/student", True, "a-run (phi-3)"),
        ("Phi-3-mini", True, "Phi-3-mini"),
    ],
)
def test_a_models_name_is_phi_3_where_its_special_tokens_strip(
    place: str, strips: bool, name: str, tmp_path: Path
) -> None:
    assert written(sentencepiece(tmp_path / place, strips=strips))["general.name"] == name
