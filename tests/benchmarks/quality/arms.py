"""The comparison: two teachers, and the records that their students learn from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.model_files.demo import DEMO_TEACHER

Records = Literal["none", "full", "sampled", "exact"]


@dataclass(frozen=True)
class Setting:
    """One teacher, its text, and the student that is cut from it: the same for every arm.

    Attributes:
        name: of the setting.
        teacher: folder of the teacher.
        precision: of matrix products, teacher's and student's.
        rows: rows of training text.
        holdout_rows: rows to measure with, at most a ninth of the others.
        sequence_length: tokens in a row.
        student_layers: of the teacher's, which the student begins with.
        batch: rows in a step.
        steps: of each training.
        learning_rate: at its peak.
        seeds: of draws and of the order of rows, one after the other.
    """

    name: str
    teacher: Path
    precision: Literal["float32", "bfloat16"]
    rows: int
    holdout_rows: int
    sequence_length: int
    student_layers: int
    batch: int
    steps: int
    learning_rate: float
    seeds: int


_SMOLLM2 = Path(os.environ.get("SMOLLM2", "SmolLM2-135M-Instruct"))
SETTINGS = {
    "demo": Setting("demo", DEMO_TEACHER, "float32", 400, 64, 128, 2, 8, 150, 1e-3, 3),
    "smollm2": Setting("smollm2", _SMOLLM2, "bfloat16", 80, 16, 128, 4, 4, 60, 5e-4, 3),
    "smollm2-once": Setting("smollm2-once", _SMOLLM2, "bfloat16", 240, 16, 128, 4, 4, 60, 5e-4, 2),
}


@dataclass(frozen=True)
class Arm:
    """The records that a student learns from.

    Attributes:
        name: in tables and results.
        records: ``none`` (labels alone), ``full`` (the teacher's whole distribution), ``sampled`` (a cache as a run
            makes it) or ``exact`` (the likeliest ids with their probabilities, as a top-k cache has them).
        size: ids in a record.
        target: what is read from them.
        kd_weight: as in the settings.
        fresh: another draw in each epoch, from a cache of its own: the bytes are those of all of them.
    """

    name: str
    records: Records
    size: int = 0
    target: Literal["unbiased", "topk", "ghost", "blend"] = "unbiased"
    kd_weight: float = 1.0
    fresh: bool = False

    @property
    def kind(self) -> str:
        """Of the cache that it reads; where it learns from none, what stands beside the rows is not looked at."""
        return self.records if self.records in ("sampled", "exact") else "sampled"


DRAWS_APART = 1000  # between the seeds of an arm's draws for one epoch and for the next

LABELS, FULL = Arm("labels only", "none", 4, kd_weight=0.0), Arm("full distribution", "full", 4)

_SIZES = {size: Arm(f"sampled, k = {size}", "sampled", size) for size in (4, 6, 8, 12, 16, 20, 24)}
MAIN = (
    LABELS,
    FULL,
    _SIZES[12],
    _SIZES[8],
    Arm("top-12 exact, renormalised", "exact", 12, "topk"),
    Arm("top-12 exact, ghost", "exact", 12, "ghost"),
    Arm("top-12 exact, blend", "exact", 12, "blend"),
)
"""The arms that all others are compared with: they have all their seeds before any other arm has its first."""

_MORE = (
    Arm("sampled, k = 12, kd_weight 0.9", "sampled", 12, kd_weight=0.9),
    Arm("sampled, k = 12, kd_weight 0.5", "sampled", 12, kd_weight=0.5),
    *(_SIZES[size] for size in (24, 6, 4, 16)),
    Arm("sampled, k = 4, fresh each epoch", "sampled", 4, fresh=True),
    Arm("sampled, k = 12, kd_weight 0.7", "sampled", 12, kd_weight=0.7),
    Arm("full distribution, kd_weight 0.9", "full", 4, kd_weight=0.9),
    Arm("sampled, k = 8, fresh each epoch", "sampled", 8, fresh=True),
    *(Arm(f"sampled, k = 12, read as {name}", "sampled", 12, name) for name in ("topk", "ghost", "blend")),
)
ARMS: dict[str, tuple[Arm, ...]] = {
    "demo": (*MAIN, *_MORE),
    "smollm2": (*MAIN, _SIZES[16], _SIZES[20]),
    "smollm2-once": (LABELS, FULL, *(_SIZES[size] for size in (12, 8, 16))),
}
