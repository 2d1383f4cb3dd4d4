"""Whether the ranks of a training can divide the student among them."""

from __future__ import annotations

from engine.errors import Problem, SettingsError
from engine.planner.shape import CARRIES_A_STATE, ModelShape
from engine.settings.config import RunConfig


def why_not_sharded(shape: ModelShape, config: RunConfig) -> str | None:
    """Why a student cannot be divided, and what to do; None where it can be."""
    if not shape.has_plain_head:
        return f"the head of {shape.name} scales or caps its logits, and only a plain head is divided; leave this out"
    if config.packing and shape.model_type in CARRIES_A_STATE:
        return (
            f"a {shape.model_type} cannot be cut between the documents of a row, and the ranks would do different "
            "numbers of passes; leave this out, or use --no_packing"
        )
    return None


def check_sharding(config: RunConfig, shape: ModelShape) -> None:
    """Refuse to divide a student that cannot be divided.

    Raises:
        SettingsError: with the reason.
    """
    why = why_not_sharded(shape, config) if config.student_sharded and config.processes > 1 else None
    if why is not None:
        raise SettingsError([Problem("student_sharded", True, why)])
