from __future__ import annotations

import pytest

from engine.errors import SettingsError
from engine.settings.config import GROUPS, SETTINGS, RunConfig, check_value
from engine.settings.describe import layer_count, layer_list, parse_bytes


def test_every_setting_has_a_group_a_help_and_a_kind():
    for info in SETTINGS.values():
        assert info.group in GROUPS
        assert info.help
        assert not info.help.endswith("."), "helps are half sentences"
        assert info.accepted()


def test_all_problems_are_said_at_once():
    with pytest.raises(SettingsError) as caught:
        RunConfig.parse({"samples": 0, "packng": True, "holdout": 0.9, "epochs": 2, "steps": 5})
    assert [problem.setting for problem in caught.value.problems] == ["samples", "holdout", "packng", "steps"]
    assert "did you mean --packing?" in caught.value.paragraph()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("typed", "size"),
    [
        ("2GB", 2 * 10**9),
        ("2 GiB", 2**31),
        ("1.5G", 3 * 2**29),
        ("700mb", 7 * 10**8),
        ("12", 12),
        (5, 5),
        ("1_500MB", 1_500_000_000),
    ],
)
def test_sizes_are_read_as_people_write_them(typed, size):
    assert parse_bytes(typed) == size


@pytest.mark.parametrize("typed", ["", "GB", "two", "2 furlongs", "-1GB", "1e9", "_GB", "1.2.3GB", "9" * 400])
def test_what_is_no_size_is_refused_in_the_words_of_the_form(typed):
    assert check_value("memory_budget", typed) == "expected a size such as 2GB, 1.5GiB or 700MB"


def test_the_form_and_the_command_line_refuse_in_the_same_words():
    with pytest.raises(SettingsError) as caught:
        RunConfig.parse({"student_batch": "0"})
    assert caught.value.problems[0].accepted == check_value("student_batch", "0")
    assert check_value("student_batch", "8") is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [(6, 6), ("6", 6), ("0,1,5", "0,1,5"), (" 0, 1 ,5", "0,1,5"), ([0, 1, 5], "0,1,5"), ((4,), "4,"), ("4,", "4,")],
)
def test_layers_are_a_number_or_a_list(given, kept):
    config = RunConfig(student_layers=given)
    assert config.student_layers == kept
    assert RunConfig.parse(config.asked()).student_layers == kept
    assert (layer_count(kept), layer_list(kept)) == (
        (6, None) if kept == 6 else (len(kept.strip(",").split(",")), [int(word) for word in kept.split(",") if word])
    )


@pytest.mark.parametrize(
    "given",
    ["", "0", 0, -1, 1025, "1025", "1;2", "a,b", "0,,2", "2,1", "1,1", [], [1.5], [True], [-1, 2], 2.0, True, "½"],
)
def test_what_are_no_layers_is_refused_in_words(given):
    told = check_value("student_layers", given)
    assert told is not None
    assert "0,1,5" in told


def test_only_what_was_set_is_asked():
    config = RunConfig.parse({"teacher": "a", "packing": True, "json": True, "memory_budget": "2GB"})
    assert config.asked() == {"teacher": "a", "packing": True, "memory_budget": 2 * 10**9}


def test_values_survive_a_round_trip_through_plain_data():
    config = RunConfig.parse({"teacher": "a", "output_dir": "out", "json": True, "clip_norm": 0})
    assert RunConfig.parse(config.asked()).asked() == config.asked()


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"resume": True}, "output_dir"),
        ({"demo": True, "teacher": "x"}, "demo"),
        ({"student": "x", "student_layers": 2}, "from-teacher"),
        ({"device": "tpu"}, "cuda:N"),
        ({"precision": "fp16", "device": "cpu"}, "GPU"),
        ({"teacher": "from-teacher"}, "--student"),
        ({"resume": True, "output_dir": "r", "dry_run": True}, "run.json"),
    ],
)
def test_contradictions_are_said(values, word):
    with pytest.raises(SettingsError) as caught:
        RunConfig.parse(values)
    assert word in caught.value.paragraph()
