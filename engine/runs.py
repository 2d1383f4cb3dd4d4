"""Where runs live when nobody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def default_runs_path() -> Path:
    """The folder of all runs: ``$TINYDISTILL_RUNS``, or the user's data folder."""
    named = os.environ.get("TINYDISTILL_RUNS")
    return Path(named).expanduser() if named else platformdirs.user_data_path("tinydistill") / "runs"
