"""The comparison of students runs from nothing to its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks.quality import students


@pytest.mark.slow
def test_students_are_cut_trained_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    size = ["--rows", "24", "--holdout-rows", "4", "--length", "32", "--threads", "1", "--seeds", "2"]
    arms = ["--arms", "half of the layers, measured", "half, measured, full logits"]
    budget = ["--minutes", "0", "0.002"]
    words = ["students", "--work", str(tmp_path / "work"), "--out", str(out), *size, *budget, *arms]
    monkeypatch.setattr(sys, "argv", words)
    students.main()
    assert set(json.loads(out.read_text())["trainings"]) == {
        "half of the layers, measured/0/0",
        *(f"{name}/0.002/{seed}" for name in arms[1:] for seed in (0, 1)),
    }
    table = capsys.readouterr().out
    assert "| half, measured, full logits | 0.002 | " in table
    assert " to " in table
