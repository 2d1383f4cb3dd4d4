"""The student's folder has the chat template in which the student was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.model_files.vocabulary import read_chat_template
from engine.phases.student_result import write_template


@pytest.mark.parametrize("files", [{}, {"chat_template.jinja": "other"}, {"tokenizer_config.json": "other"}])
def test_every_place_of_a_template_has_the_one_of_the_training(tmp_path: Path, files: dict[str, str]) -> None:
    for name, template in files.items():
        text = json.dumps({"a": 1, "chat_template": template}) if name.endswith(".json") else template
        (tmp_path / name).write_text(text)
    assert write_template(tmp_path, "ours {{ messages }}")
    assert read_chat_template(tmp_path) == "ours {{ messages }}"
    assert (tmp_path / "chat_template.jinja").read_text() == "ours {{ messages }}"
    if "tokenizer_config.json" in files:
        kept = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert kept == {"a": 1, "chat_template": "ours {{ messages }}"}
    assert not write_template(tmp_path, "ours {{ messages }}"), "nothing is written where it is there"


def test_a_template_that_tokenizers_do_not_find_is_written_where_they_do(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "ours"}))
    assert not write_template(tmp_path, "ours")
    assert (tmp_path / "chat_template.jinja").read_text() == "ours"


def test_a_template_that_stands_in_the_settings_alone_is_left_there(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "ours"}))
    assert not write_template(tmp_path, "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer_config.json"]
