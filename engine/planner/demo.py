"""Settings of ``--demo`` where the person sets none: the whole of it ends within two minutes on two CPU cores."""

from __future__ import annotations

from typing import Any

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
    "precision": "fp32",
}
"""Chosen by hand from runs of the demo, for the largest share of the gap that two minutes can close."""
