"""A model whose texts begin with a byte-order mark is the model without one, from its tokenizer to its student."""

from __future__ import annotations

import codecs
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.errors import ModelError
from engine.model_files.hub import resolve_model
from engine.model_files.spec import read_spec
from engine.models.derive import derive_student
from engine.models.load import load_causal_lm, load_tokenizer
from engine.student.export import export_student
from tests.tiny import tiny_model, tiny_texts

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def marked(folder: Path, names: tuple[str, ...], encoding: str) -> Path:
    """A model whose files of these names are in an encoding with a mark."""
    shutil.copytree(tiny_model("llama"), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    for name in names:
        (folder / name).write_bytes((folder / name).read_text().encode(encoding))
    return folder


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", FILES)
def test_a_mark_changes_neither_model_nor_tokenizer_nor_template(tmp_path: Path, name: str, encoding: str) -> None:
    plain, folder = marked(tmp_path / "plain", (), "utf-8"), marked(tmp_path / "marked", (name,), encoding)
    spec = read_spec(folder)
    ids = torch.tensor([load_tokenizer(spec.path)(tiny_texts(1)[0])["input_ids"]])
    assert ids.tolist() == [load_tokenizer(plain)(tiny_texts(1)[0])["input_ids"]]
    assert load_tokenizer(spec.path).chat_template == TEMPLATE
    with torch.no_grad():
        ours, theirs = (load_causal_lm(each, dtype=torch.float32)(ids).logits for each in (spec.path, plain))
    assert torch.equal(ours, theirs)


def test_the_student_of_a_marked_model_opens_elsewhere(tmp_path: Path) -> None:
    spec = read_spec(marked(tmp_path / "teacher", FILES, "utf-8-sig"))
    derive_student(spec, 2, tmp_path / "cut")
    cut = read_spec(tmp_path / "cut")
    export_student(load_causal_lm(cut.path, dtype=torch.float32), cut, tmp_path / "student", "card")
    for file in (tmp_path / "student").glob("*.j*"):
        assert not file.read_bytes().startswith(codecs.BOM_UTF8), file.name
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "student").chat_template == TEMPLATE


def test_a_model_without_marks_is_read_where_it_is(tmp_path: Path) -> None:
    folder = marked(tmp_path / "plain", (), "utf-8")
    assert resolve_model(folder) == folder


def test_half_a_character_behind_a_mark_is_told_with_the_file(tmp_path: Path) -> None:
    folder = marked(tmp_path / "plain", (), "utf-8")
    (folder / "chat_template.jinja").write_bytes(codecs.BOM_UTF16_LE + b"a")
    with pytest.raises(ModelError, match=r"chat_template\.jinja cannot be read"):
        read_spec(folder)
