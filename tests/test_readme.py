from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli.settings_table import with_table
from engine.settings.config import SETTINGS
from tests.end_to_end.program import write_texts
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_settings_is_what_the_program_has():
    assert with_table(README) == README, "run: python -m engine.cli.settings_table README.md"


def test_pictures_name_fonts_that_have_the_dots_of_their_curves():
    pictures = sorted((ROOT / "screenshots").glob("*.svg"))
    assert len(pictures) > 8
    for picture in pictures:
        drawn_with = re.findall(r"font-family: ([^;\"]*)[;\"]", picture.read_text(encoding="utf-8"))
        text = [fonts for fonts in drawn_with if "," in fonts]
        assert text, picture.name
        assert all("DejaVu Sans Mono" in fonts and "Apple Braille" in fonts for fonts in text), picture.name


def test_the_build_of_torch_that_the_readme_recommends_is_one_that_is_accepted():
    (bound,) = re.findall(r'"torch>=[0-9.]+,(<[0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    assert f"pip install 'torch{bound}' --index-url" in README


def test_every_flag_that_the_readme_names_exists():
    own = {
        "no_tui",
        "attach",
        "plain",
        "debug",
        "version",
        "help",
        "measure",
        "ascii",
        "no_mouse",
        "ask",
        "no_animation",
        "yes",
        "rescore",
        "beside",
        "format",
        "prompt",
        "tasks",
        "type",
        "index_url",  # pip's
    }
    for flag in re.findall(r"(?<![\w-])--([a-z][a-z_-]+)", README):
        flag = flag.replace("-", "_")
        assert flag in SETTINGS or flag in own, f"--{flag}"


def test_every_picture_and_file_that_the_readme_links_is_there():
    for target in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", README):
        file, _, heading = target.partition("#")
        assert (ROOT / file).exists(), target
        headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text("utf-8"), re.MULTILINE) if heading else []
        assert not heading or heading in {re.sub(r"\W+", "-", found.lower()) for found in headings}, target


def test_ci_runs_the_readmes_two_commands_as_they_are_written():
    script = (ROOT / ".ci/run").read_text()
    for command in ("pip install -e . && tinydistill-tui --no-tui --demo", "pip install -e '.[dev]' && pytest"):
        assert command in README
        assert command.replace("pip install", "pip install --quiet") in script


def test_ci_ends_when_a_command_on_the_left_of_another_fails():
    """Bash's -e ignores it outside of parentheses: the tests behind an installation that failed would be skipped."""
    for line in (ROOT / ".ci/run").read_text().splitlines():
        assert "&&" not in line or line.startswith(("(", "#")), line


@pytest.mark.slow
def test_the_readmes_python_lines_run_as_they_are_written(tmp_path):
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block
    shutil.copytree(tiny_model("llama"), tmp_path / "models" / "big")
    shutil.copytree(tiny_model("llama", num_layers=2), tmp_path / "models" / "small")
    write_texts(tmp_path / "notes")
    done = subprocess.run(
        [sys.executable, "-c", block[1]], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "peak_bytes" in done.stdout
    assert (tmp_path / "run" / "report.json").exists()
