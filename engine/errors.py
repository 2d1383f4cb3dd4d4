"""The exceptions of this program. Each has what happened, why, what to do, and an exit code.

::

    TinyDistillError
    ├── RequestError          2   the request is wrong
    │   ├── SettingsError         invalid settings, all of them at once
    │   ├── ModelError            a model that is missing, or that cannot be used
    │   ├── TokenizerMismatch     teacher and student do not share a vocabulary
    │   ├── DataError             no usable text
    │   ├── CacheMismatch         records of another teacher or other settings
    │   └── FolderError           a folder that cannot be used
    ├── DoesNotFit            3   memory or disk is too small, with the nearest setting that fits
    ├── RunFailed             4   the run failed, its state is kept
    │   ├── DiskFull
    │   ├── CorruptState          a file of the run is damaged and cannot be made again
    │   │   └── TokensDamaged         tokens.h5; it is made again from the text
    │   ├── FolderGone            the run's folder was moved, deleted or unmounted while it worked
    │   ├── PhaseDied             a phase's process was killed, or ended without an error message
    │   ├── RankLost              another rank of a training is gone, or does not answer
    │   ├── OutOfMemory           memory ran out where nothing smaller is left to try
    │   ├── RecordsMissing        records that are damaged or not there yet; they are made again
    │   └── BadNumbers            NaN or infinity that did not go away
    └── Stopped               130 the user stopped the run, its state is kept

An error knows nothing of screens: the front ends print :meth:`TinyDistillError.paragraph`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

EXIT_OUT_OF_MEMORY = 75  # between a phase and its supervisor only: memory ran out, try with less
EXIT_TOKENS_DAMAGED = 77  # likewise: tokens.h5 is not what was written, make it again
EXIT_OVERFLOWED = 78  # likewise: the planner's fp16 is too narrow for the teacher, try fp32
EXIT_RANK_LOST = 79  # likewise: another rank of the training is gone or does not answer
EXIT_RECORDS_MISSING = 76  # likewise: records that the journal promised are not whole, score them again

_LONGEST_SHOWN = 200  # characters of a value in a message


class TinyDistillError(Exception):
    """Base of everything this program raises on purpose.

    Args:
        what: what happened, one sentence, with the user's own paths and values.
        why: why that is a problem, one sentence; empty if ``what`` is enough.
        todo: what the user can do, one sentence.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, what: str, why: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.todo = todo

    def paragraph(self) -> str:
        """The message as it is printed: what happened, why, what to do."""
        paragraph = ""
        for part in (self.what, self.why, self.todo):
            paragraph += f" {part}" if part and paragraph and not paragraph.endswith("\n") else part
        return paragraph


class RequestError(TinyDistillError):
    """The request is wrong; nothing was started."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One invalid setting.

    Attributes:
        setting: the setting's name, as in RunConfig; a word that is not a flag as it was typed.
        value: the value as given; empty if there is none.
        accepted: what is accepted, as a sentence fragment.
    """

    setting: str
    value: object
    accepted: str

    def sentence(self) -> str:
        """One line that names the flag, the value and what is accepted."""
        flag = f"--{self.setting}" if self.setting.isidentifier() else self.setting
        return f"{flag} {shown_value(self.value)}".rstrip() + f": {self.accepted}"


def shown_value(value: object) -> str:
    """A value on one line of a message: quoted where it holds what cannot be printed, cut where it is very long."""
    text = str(value)
    if not text.isprintable():
        text = ascii(text)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 20]} … ({len(text):,} characters)"


class SettingsError(RequestError):
    """Invalid settings: all of them at once, so that the user can fix them in one go."""

    def __init__(self, problems: list[Problem], todo: str = "Run with --help to see every setting.") -> None:
        self.problems = problems
        lines = [problem.sentence() for problem in problems]
        if len(lines) == 1:
            what = f"This setting cannot be used: {lines[0]}" + ("" if lines[0].endswith("?") else ".")
        else:
            what = "These settings cannot be used:\n" + "".join(f"  {line}\n" for line in lines)
        super().__init__(what, "", todo)


class ModelError(RequestError):
    """A model that is missing, or that cannot be used as requested."""


class TokenizerMismatch(RequestError):
    """Teacher and student do not share a vocabulary: records name token ids."""


class DataError(RequestError):
    """There is no usable text."""


class CacheMismatch(RequestError):
    """Records of another teacher, tokenizer or setting."""


class FolderError(RequestError):
    """A folder that is missing, not writable, busy, or holds something else."""


class DoesNotFit(TinyDistillError):
    """Memory or disk is too small; ``todo`` names the nearest setting that fits.

    Args:
        what: as everywhere in the tree.
        why: likewise.
        todo: likewise.
        remedies: what ``todo`` proposes, as values to set; each of them alone makes it fit.
    """

    exit_code = 3

    def __init__(self, what: str, why: str = "", todo: str = "", remedies: Sequence[Mapping[str, object]] = ()) -> None:
        super().__init__(what, why, todo)
        self.remedies = tuple(remedies)


class RunFailed(TinyDistillError):
    """The run failed; its progress is kept and it can be resumed."""

    exit_code = 4


class DiskFull(RunFailed):
    """A write failed because the disk or quota is full."""


class CorruptState(RunFailed):
    """A file of the run is damaged and cannot be made again from other files."""


class TokensDamaged(CorruptState):
    """``tokens.h5`` is missing or damaged."""


class FolderGone(RunFailed):
    """The run's folder was moved, deleted or unmounted while the run worked; it is not made again."""


class PhaseDied(RunFailed):
    """A phase's process was killed, or ended without an error message."""


class RankLost(RunFailed):
    """Another rank of a training is gone, or does not answer; each checkpoint is kept."""


class OutOfMemory(RunFailed):
    """Memory ran out; in a phase the supervisor answers with less, and says so when nothing smaller is left to try."""


class RecordsMissing(RunFailed):
    """Records that the student needs are damaged or missing."""


class BadNumbers(RunFailed):
    """NaN or infinity in a loss, a gradient or a teacher's logits that did not go away."""


class Stopped(TinyDistillError):
    """The user stopped the run; its state is kept."""

    exit_code = 130
