"""Pairs of teacher and student that suit a machine, from the table in ``suggestions.toml``. Pure, no Textual."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.format import format_bytes

TABLE = Path(__file__).with_name("suggestions.toml")
MOST_SHOWN = 3
_BYTES_IN_FILE = 2  # a parameter in bf16
_BYTES_TRAINED = 16  # weight, gradient and both moments of Adam in float32


@dataclass(frozen=True)
class Suggestion:
    """A teacher and a student that go together.

    Attributes:
        teacher, student: ids on the Hugging Face hub.
        teacher_parameters, student_parameters: how large they are.
        least_bytes: the smallest budget that the planner has settings for.
        licence: of both.
        good_for: what the pair is good for, in a few words.
    """

    teacher: str
    student: str
    teacher_parameters: int
    student_parameters: int
    least_bytes: int
    licence: str
    good_for: str

    @property
    def file_bytes(self) -> dict[str, int]:
        """Bytes of each model's files."""
        return {
            self.teacher: _BYTES_IN_FILE * self.teacher_parameters,
            self.student: _BYTES_IN_FILE * self.student_parameters,
        }

    @property
    def roomy_bytes(self) -> int:
        """Memory in which the teacher is held whole and the student is trained without savings."""
        return max(_BYTES_IN_FILE * self.teacher_parameters, _BYTES_TRAINED * self.student_parameters)

    def missing_bytes(self, here: Collection[str]) -> int:
        """Bytes that are to be downloaded.

        Args:
            here: ids that are on this machine.
        """
        return sum(size for name, size in self.file_bytes.items() if name not in here)

    def row(self, here: Collection[str]) -> str:
        """The pair in a line: names, download, least memory."""
        names = " → ".join(name.rpartition("/")[2] for name in (self.teacher, self.student))
        missing = self.missing_bytes(here)
        download = format_bytes(missing) if missing else "here"
        return f"{names:<49}{download:>8}  needs {format_bytes(self.least_bytes)}"

    def about(self, here: Collection[str]) -> str:
        """Tell its use, and what Enter and F3 do."""
        download = " F3 downloads them." if self.missing_bytes(here) else ""
        return f"Good for {self.good_for} ({self.licence}). Enter uses both.{download}"


@functools.cache
def table() -> tuple[Suggestion, ...]:
    """Every pair of the table, from small to large."""
    found: dict[str, Any] = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return tuple(Suggestion(**pair) for pair in found["pair"])


def suggested(
    pairs: Sequence[Suggestion], *, memory_bytes: int, disk_bytes: int, here: Collection[str]
) -> list[Suggestion]:
    """The pairs for a machine: those that are on it first, then those that are trained in comfort, largest first.

    Args:
        pairs: to choose from, from small to large.
        memory_bytes: free memory of the device that a run would be on.
        disk_bytes: free disk; a pair whose files would take more than half of it is left out.
        here: ids that are on this machine.
    """
    fitting = [
        pair for pair in pairs if pair.least_bytes <= memory_bytes and 2 * pair.missing_bytes(here) <= disk_bytes
    ]
    sizes = {pair: pair.teacher_parameters + pair.student_parameters for pair in fitting}

    def rank(pair: Suggestion) -> tuple[bool, bool, int]:
        tight = pair.roomy_bytes > memory_bytes
        return pair.missing_bytes(here) > 0, tight, sizes[pair] if tight else -sizes[pair]

    return sorted(fitting, key=rank)[:MOST_SHOWN]
