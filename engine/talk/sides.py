"""The models of a run that can be talked to: the student as it is, as it was before, and its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import TinyDistillError
from engine.format import format_bytes
from engine.model_files.headers import read_json
from engine.model_files.hub import resolve_model
from engine.model_files.spec import read_spec

SIDES = ("after", "before", "teacher")
"""The student after the run, the student before it, the teacher."""

_BESIDE_THE_WEIGHTS = 1.2  # activations, the keys and values of an answer, and the program itself


@dataclass(frozen=True)
class Side:
    """One model.

    Attributes:
        name: of SIDES.
        folder: of the model; None when it cannot be talked to.
        problem: why not, in a sentence.
        about: its size, in words.
    """

    name: str
    folder: Path | None
    problem: str = ""
    about: str = ""


def sides_of(run: Path, available_bytes: int) -> list[Side]:
    """The three models of a run; each with the reason if it is gone or does not fit into memory.

    Args:
        run: the run's folder.
        available_bytes: memory that a model may take; they are loaded one after the other.
    """
    found = read_json(run / "run.json").get("settings")
    settings: Mapping[str, Any] = found if isinstance(found, dict) else {}
    own = settings.get("student")
    before = run / "initial-student" if own in (None, "from-teacher") else own
    places = {"after": run / "student", "before": before, "teacher": settings.get("teacher")}
    return [_side(name, places[name], available_bytes, bool(settings.get("trust_remote_code"))) for name in SIDES]


def trusts_code(run: Path) -> bool:
    """Return whether the run was allowed to run Python code that comes with its models."""
    settings = read_json(run / "run.json").get("settings")
    return isinstance(settings, dict) and bool(settings.get("trust_remote_code"))


def _side(name: str, place: object, available_bytes: int, trust_remote_code: bool) -> Side:
    if not isinstance(place, str | Path):
        return Side(name, None, "The run does not say where it is.")
    try:
        folder = resolve_model(place)
        spec = read_spec(folder, trust_remote_code=trust_remote_code)
    except TinyDistillError as error:
        return Side(name, None, error.what)
    about = format_bytes(spec.file_bytes)
    needed = int(_BESIDE_THE_WEIGHTS * spec.file_bytes)
    if needed > available_bytes:
        return Side(
            name,
            None,
            f"It needs {format_bytes(needed)} of memory, and {format_bytes(available_bytes)} are free.",
            about,
        )
    return Side(name, folder, about=about)
