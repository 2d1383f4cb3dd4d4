"""The most tokens a second that this machine could train a run with, for a run that is going here. No Textual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import TinyDistillError
from engine.planner import share
from engine.planner.models import FROM_TEACHER
from engine.settings.config import RunConfig


def full_rate(path: Path, settings: dict[str, Any]) -> float | None:
    """Tokens a second at this machine's measured rate of matrix products; None if it is unknown.

    Args:
        path: the run's folder.
        settings: the run's, as ``run.json`` has them.
    """
    try:
        config = RunConfig.model_validate(settings)
    except (TinyDistillError, ValueError):  # of another version, or changed by hand
        return None
    cut = config.student in (None, FROM_TEACHER)
    begun = path / "initial-student" if cut else Path(str(config.student))
    done = path / "student"
    return share.full_rate(config, done if (done / "config.json").is_file() else begun)
