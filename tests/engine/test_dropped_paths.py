"""Paths as terminals and file managers paste them."""

from __future__ import annotations

import os

import pytest

from engine.errors import SettingsError
from engine.settings.config import RunConfig


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("T", "with space", "it's", "per%20cent", "ü [x] $y", "back\\slash"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("'{0}/T'", "T"),
        ('"{0}/T"', "T"),
        ("'{0}/T'\n", "T"),
        ("{0}/T\r\n", "T"),
        (" T ", "T"),
        ("file://{0}/T", "T"),
        ("file://localhost{0}/with%20space", "with space"),
        ("'file://{0}/with%20space'", "with space"),
        ("file://{0}/%C3%BC%20%5Bx%5D%20%24y", "ü [x] $y"),
        ("{0}/with\\ space", "with space"),
        ("'{0}/with space' ", "with space"),
        ("{0}/it\\'s", "it's"),
        ("'{0}/it'\\''s'", "it's"),
        ("{0}/it's", "it's"),
        ("{0}/per%20cent", "per%20cent"),
        ("{0}/back\\slash", "back\\slash"),
        ("~/T", "~/T"),
        ("'~/with space'", "~/with space"),
        ("'nothing here'", "nothing here"),
        ("new\\ one", "new one"),
        ('a "quoted" \\ name', 'a "quoted" \\ name'),
        ("it's bob's", "it's bob's"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
    ],
)
def test_what_is_pasted_names_the_folder(typed, meant, folder):
    config = RunConfig.parse({"teacher": typed.format(folder), "output_dir": typed.format(folder)})
    for found in (config.teacher, str(config.output_dir)):
        assert found in (meant, os.path.join(folder, meant)), f"{typed!r} was read as {found!r}"


@pytest.mark.parametrize("typed", ["~no-user-of-this-name/T", "./~no-user-of-this-name/T", "./~root/T", "./~/T"])
def test_a_folder_here_that_is_called_like_a_users_home_is_meant(folder, typed):
    (folder / typed).mkdir(parents=True)
    config = RunConfig.parse({"teacher": typed, "data": typed, "output_dir": typed})
    for found in (config.teacher, config.data, str(config.output_dir)):
        assert os.path.expanduser(found) == str(folder / typed)


def test_where_none_is_there_the_way_to_name_one_is_told(folder):
    with pytest.raises(SettingsError, match=r"a folder here is \./~no-user/new"):
        RunConfig.parse({"output_dir": "~no-user/new"})
    assert RunConfig.parse({"output_dir": "./~no-user/new"}).output_dir == folder / "~no-user" / "new"
