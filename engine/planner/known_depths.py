"""The loss right after the cut at several depths, as an earlier run measured it for the same teacher.

A run that takes an earlier run's records has its measurements beside them, and the plan shows them: the depth is chosen
before anything is trained.
"""

from __future__ import annotations

import json
import math
from pathlib import Path


def known_depths(cache_dir: Path | None, teacher: str | None) -> str:
    """Return the measured losses of the run that the records belong to, as a sentence; empty where there are none.

    Args:
        cache_dir: the records: a folder in the run's folder, or another one.
        teacher: of the plan; measurements of another one are not shown.
    """
    if cache_dir is None or teacher is None:
        return ""
    run = cache_dir.parent
    try:
        asked = json.loads((run / "run.json").read_text(encoding="utf-8"))["settings"]["teacher"]
        cuts = json.loads((run / "phases" / "cut.json").read_text(encoding="utf-8"))["cuts"]
        losses = [(len(cut["layers"]), float(cut["holdout_loss"])) for cut in cuts if cut["holdout_loss"] is not None]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""  # records of no run, or of a run without a cut student
    told = ", ".join(f"{count} layers {loss:.2f}" for count, loss in losses if math.isfinite(loss))
    return f"Loss right after the cut, as {run.name} measured it: {told}" if told and asked == teacher else ""
