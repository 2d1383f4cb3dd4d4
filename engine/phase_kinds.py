"""The kinds of phases: what each is called, where its code is, and how its ranks work. Imports nothing.

A run does them in this order. The supervisor, the phase's process, the command line, the wizard and the report read
this table, so that another phase is one row here and its own file in ``engine/phases``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ranks = Literal["none", "apart", "together"]


@dataclass(frozen=True)
class PhaseKind:
    """One kind of phase.

    Attributes:
        name: in files, events, settings and jobs (:mod:`engine.jobs`).
        noun: for a user, in a list.
        verb: for a user, while it runs.
        module, function: its body, imported by the phase's process alone.
        ranks: work of several ranks. ``none``: one process does it all. ``apart``: each does a share, and a killed one
            starts again. ``together``: they wait for each other in every step, and end together.
    """

    name: str
    noun: str
    verb: str
    module: str
    function: str
    ranks: Ranks


KINDS = {
    kind.name: kind
    for kind in (
        PhaseKind("prepare", "prepare", "preparing", "engine.phases.prepare", "run_prepare", "none"),
        PhaseKind("teacher", "score", "scoring", "engine.phases.teacher", "run_teacher", "apart"),
        PhaseKind("student", "train", "training", "engine.phases.student", "run_student", "together"),
    )
}
PHASES = tuple(KINDS)
"""Their names, in order."""


def phase_noun(phase: str) -> str:
    """Return the phase's name for a user: prepare, score, train; an unknown one as it is."""
    return KINDS[phase].noun if phase in KINDS else phase


def phase_verb(phase: str) -> str:
    """Return the phase's activity for a user: preparing, scoring, training; an unknown one as it is."""
    return KINDS[phase].verb if phase in KINDS else phase
