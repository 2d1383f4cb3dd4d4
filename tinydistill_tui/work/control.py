"""Requests of the screens to the engine: start, stop, pause, resume. No torch, no Textual.

A request is a line in the run's ``control`` file; the answer comes as events. Nothing is waited for here.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.channel.last_word import LastWord
from engine.cli import arguments
from engine.errors import FolderError, Problem, RequestError, RunFailed, SettingsError
from engine.run import control as run_control
from engine.run import launch, supervisor
from engine.run.folder import Run
from engine.settings.config import RunConfig

# Kept, so that a supervisor that ends while we are here is no zombie; it does not end with us.
_started: list[subprocess.Popen[bytes]] = []
# Last errors of the runs that were started here, for a disk that takes no more events.
_last_words: dict[Path, LastWord] = {}


def flags(line: str) -> dict[str, Any]:
    """Return the settings that a line of flags gives, as the command line reads it.

    Raises:
        SettingsError: there is no such flag, or one has no value.
        RequestError: the line is empty.
    """
    if not line.strip():
        raise RequestError("No flag was given.", "", "Type one, such as --steps 400; Esc leaves the run as it is.")
    try:
        return arguments.parse(shlex.split(line), program="tiny-distill", description="")[0]
    except ValueError as error:  # an open quote
        raise SettingsError([Problem(line, "", f"{error}")]) from error
    except SystemExit as error:  # --help and --version print
        raise SettingsError([Problem(line, "", "settings of the run only")]) from error


def start(path: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Start a supervisor for the run, detached: it outlives this program, its terminal and its session.

    A run that began already is continued as ``--resume`` does it: inputs that were moved with it are found, and a
    folder that cannot be continued is refused before anything is written.

    Args:
        path: the run's folder.
        changes: settings that are others from now on; only for a run that began already.

    Raises:
        SettingsError: a setting may not change.
        FolderError: the run is going already, or its folder is gone or cannot be written.
        CorruptState: ``run.json`` is damaged, or of a version that is not read.
        RunFailed: no process could be started.
    """
    run = Run.open(path)
    if run.is_live():
        raise FolderError(f"{run.name} is already running.", "", "Watch it instead.")
    if run.events_path.exists() or run.is_old:
        run = launch.resume_run(RunConfig.parse({**(changes or {}), "output_dir": path, "resume": True}))
    _started[:] = [process for process in _started if process.poll() is None]
    last_word(run.path)  # of an earlier start
    word = LastWord()
    try:
        _started.append(supervisor.start(run.path, last_word=word))
        _last_words[run.path] = word
    except OSError as error:
        raise RunFailed(
            f"The run could not be started ({error.strerror or error}).",
            "",
            "Free some memory or disk, then try again.",
        ) from error


def last_word(path: Path) -> dict[str, Any] | None:
    """The last error that a run sent to the program that started it; None if there is none, or it was read."""
    word = _last_words.pop(path, None)
    return None if word is None else word.said()


def ask(path: Path, command: str) -> None:
    """Ask the run to ``stop``, ``pause`` or ``resume``.

    Raises:
        FolderError: no supervisor is running, or the folder is not writable.
    """
    if not Run(path, {}).is_live():
        raise FolderError(f"{path.name} is not running.", "There is nothing to " + command + ".", "R resumes it.")
    try:
        run_control.request(path, command, by=f"tinydistill-tui {os.getpid()}")
    except OSError as error:
        raise FolderError(
            f"{path / 'control'} cannot be written ({error.strerror or error}).", "", "Ask as the user who started it."
        ) from error
