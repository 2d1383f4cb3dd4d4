"""Whether a profile's settings work on this machine: missing files are named before a run is requested. Pure."""

from __future__ import annotations

import os
from typing import Any

from engine.data.hub_dataset import looks_like_dataset
from engine.data.sources import PYTHON_DOCS
from engine.errors import ModelError
from engine.format import format_bytes
from engine.machine.hardware import Hardware
from engine.model_files.hub import is_hub_id, resolve_model
from engine.planner.models import FROM_TEACHER


def fit_of(name: str, value: Any, machine: Hardware) -> tuple[str, str] | None:
    """Mark and words for one setting; None where a machine makes no difference."""
    match name:
        case "teacher" | "student":
            return _model(str(value))
        case "data":
            return _data(str(value))
        case "memory_budget" if machine.gpus:
            return _budget(int(value), max(gpu.free_bytes for gpu in machine.gpus))
        case "memory_budget" | "ram_budget":
            return _budget(int(value), machine.available_bytes)
        case "device":
            known = {"cpu"} | {name for gpu in machine.gpus for name in (gpu.kind, gpu.device)}
            return ("good", "is here") if value in known else ("wrong", "is not here")
    return None


def _model(name: str) -> tuple[str, str]:
    if name == FROM_TEACHER:
        return "good", "cut when it starts"
    try:
        resolve_model(name)
    except ModelError:
        return ("look", "to be downloaded") if is_hub_id(name) else ("wrong", "is not here")
    return "good", "is here"


def _data(name: str) -> tuple[str, str]:
    if name == PYTHON_DOCS or os.path.exists(os.path.expanduser(name)):  # of a name that no file can have, too
        return "good", "is here"
    return ("look", "from the hub") if looks_like_dataset(name) else ("wrong", "is not here")


def _budget(asked: int, free: int) -> tuple[str, str]:
    return ("good" if asked <= free else "wrong"), f"{format_bytes(free)} free"
