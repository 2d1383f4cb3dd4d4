"""The README's first command, as a promise: no network, and a student that answers like its teacher.

Where that command has run already, ``DEMO_RUN`` names its run and ``DEMO_OUTPUT`` a file with what it printed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.end_to_end.program import run

pytestmark = pytest.mark.slow


def demo(tmp_path: Path) -> tuple[Path, str]:
    """The demo's run, and what it printed."""
    if "DEMO_RUN" in os.environ:
        return Path(os.environ["DEMO_RUN"]), Path(os.environ["DEMO_OUTPUT"]).read_text(encoding="utf-8")
    done = run("--no-tui", "--demo", "--output_dir", tmp_path / "run", module="tinydistill_tui.cli")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run", done.stdout


def test_the_demo_closes_at_least_half_of_the_gap(tmp_path):
    folder, printed = demo(tmp_path)
    assert "It answers like its teacher in 6" in printed
    assert "of the way from its beginning" in printed
    report = json.loads((folder / "report.json").read_text())
    assert report["gap_closed"] >= 0.5
    assert report["student_after"]["top1_agreement"] >= 0.6
    low, high = report["intervals"]["gap_closed"]
    assert low < report["gap_closed"] < high
    assert report["teacher"]["holdout_loss"] < 0.75 * report["chance"]["holdout_loss"]
    assert [len(cut["layers"]) for cut in report["cut"]] == [8, 7, 5, 4, 3]
    assert report["student_before"]["holdout_loss"] - report["teacher"]["holdout_loss"] > 0.5, "a gap worth closing"
