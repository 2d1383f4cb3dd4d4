from __future__ import annotations

import pytest

from engine.errors import RequestError, SettingsError
from engine.run import launch
from engine.settings import profiles


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


@pytest.mark.parametrize(
    "value", ["näme", "a \U0001f600 model", "del\x7fete", "tab\there", "a\u2028b", 'C:\\models\\"x"']
)
def test_any_text_comes_back_from_a_profile_as_it_was_saved(value):
    profiles.save("laptop", {"teacher": value})
    assert profiles.load("laptop") == {"teacher": value}


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


def test_when_a_profile_was_used_goes_with_its_name_and_a_damaged_note_is_none():
    profiles.save("laptop", {"samples": 7})
    assert profiles.used_at("laptop") is None
    profiles.used("laptop", 1000.0)
    profiles.rename("laptop", "desktop")
    assert (profiles.used_at("laptop"), profiles.used_at("desktop")) == (None, 1000.0)
    profiles.delete("desktop")
    assert profiles.used_at("desktop") is None
    profiles._moments_path().write_text('{"a": "b", "c": 5')
    assert profiles.used_at("c") is None
    profiles.used("c", 6.0)
    assert profiles.used_at("c") == 6.0


def test_a_profile_on_the_command_line_is_used():
    profiles.save("laptop", {"samples": 7})
    launch.config_from({"profile": "laptop"})
    assert profiles.used_at("laptop") is not None
