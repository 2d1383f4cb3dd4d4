"""Default settings of ``--demo``, and the limits of its teacher."""

from __future__ import annotations

from typing import Any

from engine.data.sources import PYTHON_DOCS
from engine.model_files.demo import DEMO_TEACHER

DEMO_SETTINGS: dict[str, Any] = {
    "sequence_length": 128,
    "teacher_batch": 16,
    "student_batch": 16,
    "gradient_accumulation": 1,
    "steps": 150,
    "samples": 1_200,
    "learning_rate": 1e-3,
    "gradient_checkpointing": False,
    "layer_by_layer": False,
    "optimizer": "adamw",
}
"""Chosen by hand from runs of the demo, for the largest share of the gap that two minutes can close."""

DEMO_REASONS = {
    "sequence_length": "short rows, so that the demo is quick",
    "samples": "a part of the text, so that the demo is quick",
    "steps": "few steps, so that the demo is quick",
    "learning_rate": "of those that were tried, the one that learns most in 150 steps",
}
"""Why a setting has the demo's value, where the models and the machine do not decide it."""


def caution(teacher: str | None, data: str | None) -> str:
    """Return a warning for the demo's teacher with text that it was not trained on; empty for any other pair."""
    if teacher != str(DEMO_TEACHER) or data in (None, PYTHON_DOCS):
        return ""
    return "The demo's teacher knows Python's documentation only: a student learns little from it about other text."
