"""The README's first command, as a promise: no network, and a student that answers like its teacher."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.program import run

pytestmark = pytest.mark.slow


def test_the_demo_closes_at_least_half_of_the_gap(tmp_path):
    done = run("--no-tui", "--demo", "--output_dir", tmp_path / "run", module="tinydistill_tui.cli")
    assert done.returncode == 0, done.stderr
    assert "It answers like its teacher in 6" in done.stdout
    assert "of the way from its beginning" in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["gap_closed"] >= 0.5
    assert report["student_after"]["top1_agreement"] >= 0.6
    low, high = report["intervals"]["gap_closed"]
    assert low < report["gap_closed"] < high
    assert report["teacher"]["holdout_loss"] < 0.75 * report["chance"]["holdout_loss"]
    assert [len(cut["layers"]) for cut in report["cut"]] == [8, 7, 5, 4, 3]
    assert report["student_before"]["holdout_loss"] - report["teacher"]["holdout_loss"] > 0.5, "a gap worth closing"
