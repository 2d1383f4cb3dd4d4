"""The name of a new run's folder: after its text or its student, and the day."""

from __future__ import annotations

import re
import time
from pathlib import Path

from engine.disk.places import check_somewhere
from engine.disk.runs import default_runs_path
from engine.settings.config import RunConfig


def folder_for(config: RunConfig) -> tuple[Path, str]:
    """Return the folder of the run and a reason; never an existing folder."""
    if config.output_dir is not None:
        return config.output_dir, ""
    runs = default_runs_path()
    check_somewhere(runs, "runs", "--output_dir")
    stem = f"{_name(config)}-{time.strftime('%m%d')}"
    number, folder = 1, runs / stem
    while folder.exists():
        number += 1
        folder = runs / f"{stem}-{number}"
    return folder, "the folder of all runs, the run named after " + ("its text" if config.data else "what it makes")


def _name(config: RunConfig) -> str:
    if config.demo:
        return "demo"
    source = config.data or (config.student if config.student != "from-teacher" else None) or config.teacher or "run"
    name = re.sub(r"[^\w.-]+", "-", Path(source).expanduser().resolve().stem if config.data else Path(source).name)
    return name.strip(".-")[:40] or "run"
