"""A user without a home: nothing is asked for before it is needed, and what is asked for by name is refused kindly."""

from __future__ import annotations

import os

import pytest

from engine.disk import places, runs
from engine.errors import FolderError
from engine.model_files import hub
from engine.planner import measure
from engine.planner.run_folder import folder_for
from engine.settings import profiles
from engine.settings.config import RunConfig


@pytest.fixture
def homeless(monkeypatch):
    """A process without HOME, under a number that no user has."""
    for name in [*(name for name in os.environ if name.startswith(("XDG_", "HF_"))), "HOME"]:
        monkeypatch.delenv(name, raising=False)

    def unknown(_number):
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)


def test_nothing_is_kept_and_nothing_is_refused(homeless, tmp_path):
    assert profiles.names() == []
    profiles.used("mine", 1.0)
    assert profiles.used_at("mine") is None
    with runs.announced(tmp_path):
        assert runs.announced_runs() == []
    assert measure.machine_rates(threads=1).measured is False
    assert hub.cached_models() == []
    assert "no home folder" in places.nothing_is_kept()
    assert folder_for(RunConfig(output_dir=tmp_path / "run"))[0] == tmp_path / "run"


def test_actions_that_need_a_home_name_the_setting_to_give_instead(homeless):
    with pytest.raises(FolderError, match="--output_dir"):
        _raise_paragraph(lambda: folder_for(RunConfig(demo=True)))
    with pytest.raises(FolderError, match="set HOME"):
        _raise_paragraph(lambda: profiles.save("mine", {"samples": 4}))


def _raise_paragraph(action):
    try:
        action()
    except FolderError as error:
        raise FolderError(error.paragraph()) from error


def test_a_home_that_cannot_be_written_is_told_and_one_that_can_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert places.nothing_is_kept() == ""
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self/cache")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written" in places.nothing_is_kept()
