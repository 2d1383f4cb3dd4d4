"""Tokens a second that a run's models write, kept in the run's folder.

Each phase measures its model at the end of its samples, and a talk in which all of them answer measures them again.

The file is ``talk.json``: {"teacher": 12.5, "after": 61.0}, by the names of ``engine.talk.sides.SIDES``.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from engine.disk.files import write_atomic
from engine.errors import ModelError
from engine.model_files.headers import read_json

FILE = "talk.json"


def speeds(run: Path) -> dict[str, float]:
    """Return the kept rates by model; empty if none was measured."""
    try:
        found = read_json(run / FILE)
    except ModelError:  # it is not there, or damaged
        return {}
    return {
        name: float(rate)
        for name, rate in found.items()
        if isinstance(rate, int | float) and not isinstance(rate, bool) and math.isfinite(rate) and rate > 0
    }


def keep_speed(run: Path, side: str, tokens_per_second: float | None) -> None:
    """Keep the rate of a model's last text; a folder that takes no file is no reason to stop a phase."""
    if tokens_per_second:
        _keep(run, {side: tokens_per_second})


def keep_speeds(run: Path, rates: Mapping[str, float | None]) -> None:
    """Keep the rates of models that answered one right after the other, in a talk.

    They replace the kept ones together or not at all: a student that answered while other programs took the processor
    is not held against a teacher that was measured on a quiet machine.
    """
    measured = {side: rate for side, rate in rates.items() if rate}
    if speeds(run).keys() <= measured.keys():
        _keep(run, measured)


def _keep(run: Path, rates: Mapping[str, float]) -> None:
    rounded = {side: round(rate, 2) for side, rate in rates.items()}
    with contextlib.suppress(OSError):
        write_atomic(run / FILE, json.dumps({**speeds(run), **rounded}) + "\n")
