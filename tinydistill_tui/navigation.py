"""Requests of a screen to the program: another screen, a run to open or to start, answers for the wizard.

Screens do not know each other. A screen says what it wants with one of these values; ``routes`` carries it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from engine.errors import TinyDistillError
from engine.machine.hardware import Hardware
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.work.draft import Draft

Step = Literal["models", "data", "plan", "profiles"]


@dataclass(frozen=True)
class GoTo:
    """Show a step of the wizard, or the profiles.

    Attributes:
        step: its name.
        draft: the answers, which the steps share.
        instead: replace the screen that is shown; it stays below the new one otherwise.
    """

    step: Step
    draft: Draft
    instead: bool = False


@dataclass(frozen=True)
class OpenRun:
    """Show the run in a folder."""

    path: Path


@dataclass(frozen=True)
class StartRun:
    """Start a supervisor for the run in a folder, and show the run."""

    path: Path


@dataclass(frozen=True)
class ResumeWith:
    """Ask for flags, and resume the run in a folder with them."""

    path: Path


@dataclass(frozen=True)
class AskFor:
    """Begin the wizard with these settings in place of the draft; ones that belong to a single run are left out."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class ShowResult:
    """Show how a run ended.

    Attributes:
        path: the run's folder.
        view: what its events say.
    """

    path: Path
    view: RunView


@dataclass(frozen=True)
class ShowLog:
    """Go back from a result to the run's plots and log.

    Attributes:
        at_error: whether the newest error is brought into sight.
    """

    at_error: bool


@dataclass(frozen=True)
class TalkTo:
    """Talk to the student of a run.

    Attributes:
        path: the run's folder.
        first: what an empty line asks.
    """

    path: Path
    first: str


@dataclass(frozen=True)
class EditSetting:
    """Go to the plan and begin to change a setting; only within the wizard."""

    name: str


Request = GoTo | OpenRun | StartRun | ResumeWith | AskFor | ShowResult | ShowLog | TalkTo | EditSetting


class Program(Protocol):
    """The app, as screens know it.

    Attributes:
        config_values: settings of the command line or of its profile; the wizard begins with them.
        source: where they came from, in words.
        run_path: the run that the run mode shows.
        machine: what this machine has, as the first screen found it.
        clock: Unix seconds.
    """

    config_values: dict[str, Any]
    source: str
    run_path: Path | None
    machine: Hardware | None
    clock: Callable[[], float]

    async def navigate(self, request: Request) -> None:
        """Carry out a request.

        Raises:
            TinyDistillError: a run cannot be started; what is shown stays.
        """

    def hold_keys(self) -> None:
        """Keep keys back until what is called later has run."""

    def show_help(self) -> None:
        """Help for what has the focus."""

    def tell(self, error: TinyDistillError) -> None:
        """Say what went wrong, in a corner."""

    def copy(self, text: str, what: str, more: str = ".") -> None:
        """Copy a text and say so."""

    def show_in_pager(self, path: Path) -> None:
        """Let the user read a file in ``$PAGER``."""

    def run_in_the_terminal(self, words: Sequence[str], folder: Path | None = None) -> None:
        """Run a program where the screen was."""
