"""A few settings of the benchmark: what was predicted is what the real phase takes, within ten per cent."""

from pathlib import Path

import pytest

from tests.benchmarks.predicted_memory import CASES, CLAIM, Case, measure

QUICK = [case for case in CASES if case.quick]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.slow
@pytest.mark.parametrize("case", QUICK, ids=lambda case: f"{case.phase}-{case.model}-{len(case.settings)}")
def test_a_predicted_peak_is_measured_within_ten_per_cent(case: Case, folder: Path) -> None:
    row = measure(case, folder)
    assert row["problem"] == ""
    assert abs(row["ratio"] - 1) <= CLAIM, row
