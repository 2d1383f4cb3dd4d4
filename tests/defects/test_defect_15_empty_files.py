"""``scripts/run_distill.py`` and ``pyproject.toml`` of the original were empty files."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MADE_EMPTY = {"__init__.py"}  # a package that re-exports nothing may say nothing


@pytest.mark.parametrize("name", ["tinydistill-tui", "tiny-distill", "tiny-distill-profile", "tiny-distill-cache"])
def test_each_program_is_installed_and_says_how_it_is_used(name: str) -> None:
    module, _, function = PROJECT["scripts"][name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; from {module} import {function}; sys.exit({function}())", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert name in done.stdout


def test_no_file_of_the_programs_is_empty() -> None:
    files = [path for part in ("engine", "tinydistill_tui") for path in (ROOT / part).rglob("*.py")]
    assert [str(path) for path in files if not path.read_text().strip() and path.name not in MADE_EMPTY] == []


def test_what_the_package_needs_is_said() -> None:
    needed = {requirement.split(">")[0].split("=")[0].strip() for requirement in PROJECT["dependencies"]}
    assert {
        "torch",
        "transformers",
        "h5py",
        "textual",
        "rich",
        "bitsandbytes",
        "nvidia-ml-py",
        "platformdirs",
    } <= needed
    assert {"dev", "optional"} <= set(PROJECT["optional-dependencies"])
