from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.student.small_run import SmallRun, make_run


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return make_run(tmp_path / "run")
