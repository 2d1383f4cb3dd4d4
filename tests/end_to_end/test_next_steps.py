"""Every line of a finished run's next.txt runs as it is written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.model_files.spec import read_spec
from tests.end_to_end import program
from tests.test_from_file_to_ollama import place as place
from tests.test_from_file_to_ollama import sh
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow


def finished(folder: Path) -> Path:
    """A finished run in a folder whose name a shell would split."""
    run = folder / "a run"
    done = program.run(
        *["--teacher", tiny_model("llama"), "--student", "from-teacher", "--student_layers", 2, "--steps", 4],
        *["--data", program.write_texts(folder / "notes"), "--output_dir", run, *program.QUICK],
    )
    assert done.returncode == 0, done.stderr
    return run


def commands(run: Path) -> dict[str, str]:
    """The command below each title of next.txt."""
    text = (run / "next.txt").read_text()
    return dict(re.findall(r"^(\S.*):\n    (.+)$", text, re.MULTILINE))


def test_each_line_of_next_txt_runs_word_for_word(place: Path) -> None:
    run = finished(place)
    found = commands(run)
    assert len(found) >= 10
    runs = place.parent / "runs"
    for title, line in found.items():
        sh(f"export TINYDISTILL_RUNS='{runs}'\n{line}", place)
        if title.startswith("Train it longer"):
            assert json.loads((run / "report.json").read_text())["config"]["steps"] == 8
    new = sorted(runs.iterdir(), key=lambda folder: folder.stat().st_mtime)
    assert len(new) == 2, "one with the student as its start, one with a second student"
    onward, second = (json.loads((folder / "report.json").read_text()) for folder in new)
    before = json.loads((run / "report.json").read_text())
    assert onward["config"]["student"] == str(run / "student")
    start = onward["student_before"]["holdout_loss"]
    assert start == pytest.approx(before["student_after"]["holdout_loss"], rel=1e-3), "it begins where the other ended"
    assert read_spec(new[1] / "student").num_layers == 1
    # Both took the records that were there: the teacher scored nothing again.
    assert second["cache"]["tokens"] == before["cache"]["tokens"]
    for folder in new:
        assert not (folder / "cache").exists() or not list((folder / "cache").glob("**/*.h5"))


def test_another_run_on_other_text_begins_with_the_student(tmp_path: Path) -> None:
    run = finished(tmp_path)
    files = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    other = program.write_texts(tmp_path / "other", 40)
    done = subprocess.run(
        [sys.executable, "-m", "engine.cli.distill", "--start_from", run, "--data", other, "--output_dir", "second"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=500,
        env={**os.environ, "PYTHONPATH": str(program.ROOT)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "second" / "report.json").read_text())
    assert report["config"]["student"] == str(run / "student")
    assert report["config"]["steps"] == 4, "as the earlier run asked"
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()} == files
