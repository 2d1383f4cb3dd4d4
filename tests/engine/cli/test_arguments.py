from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from engine.cli.arguments import command_line, parse
from engine.config import SETTINGS, RunConfig
from engine.errors import SettingsError


def parsed(line: str) -> dict:
    return parse(shlex.split(line), program="tiny-distill", description="")[0]


def test_flags_may_be_typed_with_hyphens_or_underscores():
    assert parsed("--sequence-length 64 --teacher_batch=2") == parsed("--sequence_length 64 --teacher-batch 2")


def test_switches_need_no_value_and_can_be_turned_off():
    assert parsed("--gradient_checkpointing --no-packing --layer-by-layer off") == {
        "gradient_checkpointing": True,
        "packing": False,
        "layer_by_layer": "off",
    }
    assert RunConfig.parse(parsed("--layer_by_layer off")).layer_by_layer is False


def test_values_keep_their_hyphens():
    assert parsed("--student from-teacher --output-dir my-run")["student"] == "from-teacher"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--sampels 5", ["--sampels", "did you mean --samples?"]),
        ("--samples", ["--samples", "needs a value", "a whole number from 1 up"]),
        ("stray", ["stray"]),
        ("--frobnicate --quux 3", ["--frobnicate", "--quux"]),
    ],
)
def test_what_cannot_be_taken_apart_is_named(line, words):
    with pytest.raises(SettingsError) as caught:
        parsed(line)
    for word in words:
        assert word in caught.value.paragraph()


def test_the_command_line_of_a_config_asks_for_the_same():
    values = {"student": "my models/b", "packing": False, "samples": 7, "gradient_checkpointing": True}
    config = RunConfig.parse(values)
    assert RunConfig.parse(parsed(command_line(config).removeprefix("tiny-distill"))).asked() == config.asked()


def test_help_shows_every_setting_in_its_group():
    done = subprocess.run(
        [sys.executable, "-m", "engine.cli.distill", "--help"], capture_output=True, text=True, check=True
    )
    for info in SETTINGS.values():
        assert f"--{info.name} " in done.stdout or f"--{info.name}\n" in done.stdout
    assert "How much fits at a time" in done.stdout
