"""A loaded tokenizer reads text as its tokenizer.json says, or it is not used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer

from engine.errors import ModelError
from engine.model_files.vocabulary import read_vocabulary
from engine.models.faithful import PROBES, check_ids, load_faithful, probe_ids
from engine.models.load import load_tokenizer
from tests.tiny import tiny_tokenizer, tiny_tokenizer_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(tiny_tokenizer_folder(), tmp_path / "tokenizer")


def settings(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer", "Unheard"])
@pytest.mark.parametrize("written_by", ["4.57.3", "5.2.0", None])
def test_whatever_class_is_named_text_is_read_as_the_file_says(folder: Path, name: str, written_by: str | None) -> None:
    model = {"model_type": "llama", "transformers_version": written_by}
    (folder / "config.json").write_text(json.dumps(model))
    settings(folder, tokenizer_class=name)
    loaded: Any = load_tokenizer(folder)
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (" river  stone\n\tlamp", *PROBES):
        ids = file.encode(text, add_special_tokens=False).ids
        assert loaded(text, add_special_tokens=False)["input_ids"] == ids
        assert loaded.decode(ids) == text


def test_a_class_that_loses_spaces_gives_way_to_the_file(folder: Path) -> None:
    lossy: Any = LlamaTokenizer.from_pretrained(folder)
    assert probe_ids(lossy) != probe_ids(tiny_tokenizer()), "else this shows nothing"
    tokenizer, note = load_faithful(lambda: lossy, folder)
    assert probe_ids(tokenizer) == probe_ids(tiny_tokenizer())
    assert "LlamaTokenizer" in note
    assert "tokenizer.json is used" in note
    assert tokenizer.eos_token_id == 0


def test_a_faithful_tokenizer_stays_as_it_is(folder: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(folder)
    assert load_faithful(lambda: loaded, folder) == (loaded, "")


def test_the_files_own_tokenizer_is_gone_before_the_other_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OfFile:
        alive = 0

        def __init__(self, path: str) -> None:
            self._tokenizer = Tokenizer.from_file(path)
            OfFile.alive += 1

        def __del__(self) -> None:
            OfFile.alive -= 1

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tokenizer, name)

    def load() -> Any:
        assert OfFile.alive == 0
        return AutoTokenizer.from_pretrained(folder)

    monkeypatch.setattr("engine.models.faithful.Tokenizer", SimpleNamespace(from_file=OfFile))
    assert load_faithful(load, folder)[1] == ""


def test_a_tokenizer_that_no_class_reads_as_the_file_says_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy: Any = LlamaTokenizer.from_pretrained(folder)
    monkeypatch.setattr("engine.models.faithful.PreTrainedTokenizerFast", LlamaTokenizer)
    with pytest.raises(ModelError, match="reads text otherwise than"):
        load_faithful(lambda: lossy, folder)


def test_length_limits_in_the_file_do_not_count_as_another_reading(folder: Path) -> None:
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.enable_truncation(max_length=8)
    file.enable_padding(length=8)
    file.save(str(folder / "tokenizer.json"))
    assert len(probe_ids(load_tokenizer(folder))[0]) > 8


def test_ids_that_are_loaded_otherwise_than_the_files_say_are_refused(folder: Path) -> None:
    vocabulary = read_vocabulary(folder)
    check_ids(tiny_tokenizer(), vocabulary)
    content = json.loads((folder / "tokenizer.json").read_text())
    ids = content["model"]["vocab"]
    ids["A"], ids["B"] = ids["B"], ids["A"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"'[AB]' for the id \d+ by its files, and '[AB]' as transf"):
        check_ids(load_tokenizer(folder), vocabulary)
