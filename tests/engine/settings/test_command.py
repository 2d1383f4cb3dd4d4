"""Commands that a user pastes into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from engine.cli.export import student_folder
from engine.errors import FolderError
from engine.settings.command import how_to_continue, resume_command

SPACED = Path("my runs/it's one")


def test_the_command_that_continues_a_run_is_read_by_a_shell_as_it_was_meant():
    assert shlex.split(resume_command(SPACED)) == ["tiny-distill", "--resume", "--output_dir", str(SPACED)]


@pytest.mark.parametrize("first", ["", "Free some space"])
def test_advice_to_continue_ends_with_the_command(first: str):
    said = how_to_continue(SPACED, first)
    assert said.endswith(f"ontinue: {resume_command(SPACED)}")
    assert first in said


def test_a_run_without_a_student_names_the_command_with_its_path_quoted(tmp_path: Path):
    run = tmp_path / "a run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(FolderError) as caught:
        student_folder(run)
    assert resume_command(run) in caught.value.todo
