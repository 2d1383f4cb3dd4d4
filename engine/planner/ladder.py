"""The ladder: plans for the same two models with less and less memory, one more saving on each rung.

It shows the gain and the cost of each saving, independent of the budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.machine.hardware import Hardware
from engine.planner.measure import MachineRates
from engine.planner.prediction import PhasePrediction, Plan
from engine.planner.resolve import plan
from engine.settings.config import RunConfig

# Each rung keeps what the ones before it saved.
_TEACHER_RUNGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("whole teacher, 8 rows", {"layer_by_layer": False, "teacher_batch": 8, "cpu_offload": False}),
    ("1 row at a time", {"teacher_batch": 1}),
    ("streamed, 8 rows", {"layer_by_layer": True, "teacher_batch": 8}),
    ("streamed, 1 row at a time", {"teacher_batch": 1}),
)
_STUDENT_RUNGS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "plain AdamW, 8 rows",
        {"student_batch": 8, "gradient_checkpointing": False, "optimizer": "adamw", "cpu_offload": False},
    ),
    ("2 rows at a time", {"student_batch": 2}),
    ("8-bit optimizer states", {"optimizer": "adamw-8bit"}),
    ("activations recomputed", {"gradient_checkpointing": True}),
    ("1 row at a time", {"student_batch": 1}),
    ("weights, states offloaded", {"cpu_offload": True}),
    ("8 rows, no gradient whole", {"student_batch": 8}),
)
# Rows of an optimizer step on every rung, so that they are compared at the same work.
_ROWS_IN_A_STEP = 8


@dataclass(frozen=True)
class Rung:
    """One way of doing one phase.

    Attributes:
        phase: teacher or student.
        label: the saving of this rung.
        plan: the whole plan with it.
        fits: whether the phase stays inside the budget.
    """

    phase: str
    label: str
    plan: Plan
    fits: bool

    @property
    def predicted(self) -> PhasePrediction:
        """Of this rung's phase."""
        return self.plan.predicted[self.phase]


def ladder(config: RunConfig, *, hardware: Hardware | None = None, machine: MachineRates | None = None) -> list[Rung]:
    """Return all rungs for both phases; rungs that would change the user's settings are left out.

    Raises:
        RequestError: as :func:`engine.planner.plan`.
    """
    found = []
    for phase, rungs in (("teacher", _TEACHER_RUNGS), ("student", _STUDENT_RUNGS)):
        for label, values in _steps(config, rungs):
            planned = plan(config.model_copy(update=values), hardware=hardware, machine=machine, strict=False)
            found.append(Rung(phase, label, planned, _fits(planned, phase)))
    return found


def _steps(config: RunConfig, rungs: tuple[tuple[str, dict[str, Any]], ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    values: dict[str, Any] = {}
    for label, change in rungs:
        open_changes = {name: value for name, value in change.items() if getattr(config, name) in (None, value)}
        if values and not open_changes:
            continue
        values |= open_changes
        batch = values.get("student_batch")
        if batch is not None and config.gradient_accumulation is None:
            values["gradient_accumulation"] = max(1, _ROWS_IN_A_STEP // batch)
        yield label, dict(values)


def _fits(planned: Plan, phase: str) -> bool:
    predicted, settings = planned.predicted[phase], planned.settings
    room = settings.memory_budget or 0
    return predicted.peak_bytes <= room and predicted.ram_bytes <= (settings.ram_budget or 0)
