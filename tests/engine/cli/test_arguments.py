from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from engine.cli.arguments import parse
from engine.errors import SettingsError
from engine.settings.command import command_line
from engine.settings.config import SETTINGS, RunConfig


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
    assert "Memory and speed" in done.stdout


def test_help_and_a_dry_run_load_no_heavy_library():
    from tests.tiny import tiny_model

    program = (
        "import sys\nfrom engine.cli.distill import main\n"
        "from engine.run import launch\nfrom engine.planner.measure import cautious_rates\n"
        "launch.machine_rates = lambda **_: cautious_rates('cpu', 1)\n"
        f"assert main(['--teacher', {str(tiny_model('llama'))!r}, '--student', 'from-teacher', '--dry_run']) == 0\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit([name for name in ('torch', 'transformers', 'numpy', 'h5py') if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_fits_a_terminal_of_eighty_columns():
    done = subprocess.run(
        [sys.executable, "-m", "engine.cli.distill", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert max(map(len, done.stdout.splitlines())) <= 80
