"""Names of paths that no file can have are answered by every program in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.cli import cache, chat, distill, eval, export
from engine.disk.named_path import named_path
from engine.errors import FolderError
from engine.run.folder import Run
from tests.tiny import tiny_model
from tinydistill_tui import command

NAMES = ["~nobody-of-this-name/x", "x" * 5000, "x" * 300, "a\0b"]


def test_a_path_need_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_path("~/to come") == tmp_path / "to come"
    assert named_path("to come") == Path("to come")
    (tmp_path / "file").touch()
    assert named_path(tmp_path / "file" / "below") == tmp_path / "file" / "below"


@pytest.mark.parametrize("name", NAMES, ids=["no user", "long", "long for a name", "null"])
@pytest.mark.parametrize(
    ("program", "words"),
    [
        (chat.main, ["{}"]),
        (eval.main, ["{}"]),
        (export.main, ["{}", "--format", "hf"]),
        (export.main, ["{model}", "--format", "hf", "--out", "{}"]),
        (cache.main, ["inspect", "{}"]),
        (cache.main, ["inspect", "{model}", "--tokenizer", "{}"]),
        (distill.main, ["--resume", "--output_dir", "{}"]),
        (distill.main, ["--start_from", "{}", "--dry_run"]),
        (command.main, ["--no_tui", "--attach", "{}"]),
    ],
)
def test_a_name_that_no_file_can_have_is_a_wrong_request(
    program: Any, words: list[str], name: str, capsys: Any
) -> None:
    model = str(tiny_model("llama"))
    assert program([name if word == "{}" else word.replace("{model}", model) for word in words]) == 2
    said = capsys.readouterr().err
    assert "unexpected" not in said
    assert len(said) < 1500


def test_a_run_of_such_a_name_is_not_there() -> None:
    with pytest.raises(FolderError, match="There is no folder x"):
        Run.open(Path("x" * 300))
