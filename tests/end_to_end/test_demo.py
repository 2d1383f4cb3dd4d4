"""The README's first command, as a promise: no network, and most of the gap is closed."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.program import run

pytestmark = pytest.mark.slow


def test_the_demo_closes_at_least_half_of_the_gap(tmp_path):
    done = run("--no-tui", "--demo", "--output_dir", tmp_path / "run", module="tinydistill_tui.cli")
    assert done.returncode == 0, done.stderr
    assert "of the gap to its teacher" in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["gap_closed"] >= 0.5
    assert report["student_before"]["holdout_loss"] - report["teacher"]["holdout_loss"] > 0.5, "a gap worth closing"
