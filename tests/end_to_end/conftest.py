"""Programs that are started here find this machine measured: each would measure it again in its empty home."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _measured(machine_is_measured: None) -> None:
    """The rates of one thread and of all, measured once for all tests (``tests/engine/planner/test_measure.py``)."""
