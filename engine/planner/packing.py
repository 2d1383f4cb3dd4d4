"""Choice of ``packing``: several documents per row, except for students that cannot separate documents."""

from __future__ import annotations

from engine.planner import reasons
from engine.planner.shape import CARRIES_A_STATE, ModelShape
from engine.settings.config import RunConfig


def packing_for(config: RunConfig, student: ModelShape) -> tuple[bool, str]:
    """Return the setting ``packing`` and its reason; a value of the user stays."""
    if student.model_type not in CARRIES_A_STATE:
        return config.packing, reasons.DEFAULTS["packing"]
    if "packing" in config.model_fields_set:
        return config.packing, ""
    return False, f"layers of {student.model_type} carry a state from one document to the next: one document in a row"
