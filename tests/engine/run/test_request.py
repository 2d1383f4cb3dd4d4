from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.errors import CacheMismatch, FolderError, SettingsError, TinyDistillError
from engine.run.new_folder import check_new_folder
from engine.run.request import check_request, with_absolute_paths
from engine.settings.config import RunConfig


def test_paths_mean_the_same_from_every_folder_and_names_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "big").mkdir()
    (tmp_path / "notes.txt").write_text("words")
    config = with_absolute_paths(
        RunConfig(teacher="big", student="owner/small", data="./notes.txt", output_dir="run", cache_dir="a/../c")
    )
    assert config.teacher == str(tmp_path / "big")
    assert config.student == "owner/small"
    assert config.data == str(tmp_path / "notes.txt")
    assert (config.output_dir, config.cache_dir) == (tmp_path / "run", tmp_path / "c")
    assert with_absolute_paths(RunConfig(student="from-teacher", data="python-docs")).asked() == {
        "student": "from-teacher",
        "data": "python-docs",
    }


def test_a_config_made_in_python_gets_our_errors_and_may_have_paths(tmp_path):
    with pytest.raises(SettingsError, match="--samples 0"):
        RunConfig(samples=0)
    assert RunConfig(teacher=tmp_path, data=tmp_path).teacher == str(tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000])
def test_a_name_that_no_folder_can_have_is_refused_in_the_systems_words(tmp_path, name):
    with pytest.raises(FolderError, match="too long"):
        check_new_folder(Path(tmp_path, name))


def test_a_paragraph_has_one_blank_between_its_sentences_and_none_after_a_line():
    assert CacheMismatch("One.", "", "Three.").paragraph() == "One. Three."
    assert TinyDistillError("These:\n  a\n", "", "Fix them.").paragraph() == "These:\n  a\nFix them."


@pytest.mark.parametrize("name", ["teacher", "student", "data", "output_dir", "cache_dir"])
def test_a_path_that_is_no_text_is_refused_before_anything_is_made(name, tmp_path, monkeypatch):
    """It ended with a UnicodeEncodeError in the middle of making the run's folder."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/sur\xff"))
    folder.mkdir()
    plain = {"teacher": "me/big", "student": "me/small", "data": "x", "output_dir": "run", "cache_dir": "records"}
    with pytest.raises(FolderError) as caught:
        check_request(RunConfig.model_construct(**{**plain, name: folder}))
    assert f"--{name} holds bytes that are no UTF-8" in caught.value.paragraph()
    caught.value.paragraph().encode()
    monkeypatch.chdir(folder)
    with pytest.raises(FolderError, match="--output_dir holds bytes"):
        check_request(RunConfig.model_construct(**plain))
