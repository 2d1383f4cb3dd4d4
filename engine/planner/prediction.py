"""Content of a plan: choices with their reasons, and predictions for each phase.

These are plain values; the other files in this folder compute them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import DoesNotFit
from engine.jobs import Job
from engine.settings.config import RunConfig

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "other")
"""Parts of a phase's memory, in the order of display."""


@dataclass(frozen=True)
class Choice:
    """One setting with its resolved value.

    Attributes:
        field: the setting's name.
        value: its value.
        by: "user" if the user set it, else "planner".
        reason: the reason, with a number if possible.
    """

    field: str
    value: Any
    by: Literal["user", "planner"]
    reason: str


@dataclass(frozen=True)
class PhasePrediction:
    """Prediction of one phase's memory and time.

    Attributes:
        peak_bytes: highest memory of the phase's process, or of its processes together: anonymous memory on the CPU;
            all that it holds on a GPU, the driver's context for it included.
        seconds: how long it takes.
        seconds_error: half the width of the range that ``seconds`` is good for.
        parts: bytes of each of PARTS at the moment of the peak; they sum to ``peak_bytes``.
        ram_bytes: highest main memory of the process; on the CPU the same as ``peak_bytes``.
    """

    peak_bytes: int
    seconds: float
    seconds_error: float
    parts: Mapping[str, int]
    ram_bytes: int


@dataclass(frozen=True)
class Plan:
    """All settings with reasons and predictions.

    Attributes:
        settings: the configuration with all settings that the run needs.
        choices: one for each setting, in the order of RunConfig.
        predicted: "teacher" and "student" (without the student when the run ends before it).
        disk_bytes: the most that the run's folder will hold.
        total_steps: optimizer steps; None while the amount of text is not known.
        misfit: why it does not fit and settings that fit, if plan() was called without ``strict``.
        text_rows: rows to train on that all of the text gives; None while its amount is not known.
        little_text: warning for a text that is small for the student, or None.
        jobs: of the run, in order.
        prepare_bytes: highest memory of the process that prepares the text, which comes before both.
        prepare_seconds, prepare_seconds_error: how long that takes, the start of the first process included.
    """

    settings: RunConfig
    choices: tuple[Choice, ...]
    predicted: Mapping[str, PhasePrediction]
    disk_bytes: int
    total_steps: int | None
    misfit: DoesNotFit | None = None
    text_rows: int | None = None
    little_text: str | None = None
    jobs: tuple[Job, ...] = ()
    prepare_bytes: int = 0
    prepare_seconds: float = 0.0
    prepare_seconds_error: float = 0.0
