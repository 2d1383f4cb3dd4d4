from __future__ import annotations

import pytest

from engine import profiles
from engine.errors import RequestError, SettingsError


def test_a_profile_holds_what_the_person_set_and_nothing_else():
    profiles.save(
        "laptop",
        {
            "teacher": 'a "quoted" \\ näme',
            "packing": False,
            "samples": 7,
            "holdout": 0.1,
            "resume": True,
            "output_dir": "x",
        },
    )
    assert profiles.names() == ["laptop"]
    assert profiles.load("laptop") == {
        "teacher": 'a "quoted" \\ näme',
        "packing": False,
        "samples": 7,
        "holdout": 0.1,
        "output_dir": "x",
    }


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "x" * 65, "a\x00b"])
def test_a_name_cannot_leave_the_folder(name):
    with pytest.raises(SettingsError):
        profiles.save(name, {})
    with pytest.raises(SettingsError):
        profiles.load(name)


def test_a_missing_profile_names_those_that_exist():
    profiles.save("cpu-only", {"device": "cpu"})
    with pytest.raises(SettingsError, match="cpu-only"):
        profiles.load("cpu")


def test_rubbish_in_a_profile_is_said_and_bad_settings_are_named():
    profiles.save("bad", {})
    profiles.path_of("bad").write_text("this is = = no toml")
    with pytest.raises(RequestError, match="cannot be read"):
        profiles.load("bad")
    profiles.path_of("bad").write_text("samples = 0\nsampels = 1\n")
    with pytest.raises(SettingsError) as caught:
        profiles.load("bad")
    assert len(caught.value.problems) == 2


def test_renaming_never_overwrites():
    profiles.save("one", {"seed": 1})
    profiles.save("two", {"seed": 2})
    with pytest.raises(SettingsError, match="already"):
        profiles.rename("one", "two")
    profiles.rename("one", "three")
    profiles.delete("two")
    assert profiles.names() == ["three"]
    assert profiles.load("three") == {"seed": 1}
