"""A folder that is to become that of a new run."""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine.errors import FolderError, shown_value
from engine.settings.command import resume_command

# Of a run that was killed while its folder was made.
_KILLED_EARLY = re.compile(r"run\.json\.\d+\.tmp")


def check_new_folder(path: Path) -> None:
    """Make sure that a folder can become that of a new run; nothing is made.

    Raises:
        FolderError: it holds something else, or another run, or could not be written.
    """
    path = path.expanduser().absolute()
    try:
        if path.is_dir():
            if (path / "run.json").exists():
                raise FolderError(
                    f"{path} already holds a run.",
                    "It is not overwritten.",
                    f"Continue it: {resume_command(path)}, or choose another --output_dir.",
                )
            if not all(_KILLED_EARLY.fullmatch(entry.name) for entry in path.iterdir()):
                raise FolderError(
                    f"{path} is not empty and holds no run.",
                    "A run needs a folder of its own.",
                    "Choose an --output_dir that is empty or does not exist yet.",
                )
        there = path
        while not os.path.lexists(there) and there != there.parent:
            there = there.parent
        if not there.is_dir():
            what = f"{there} is a file." if there.is_file() else f"{there} is neither a file nor a folder."
            raise FolderError(f"There can be no run in {path}.", what, "Choose another --output_dir.")
        if not os.access(there, os.W_OK | os.X_OK):
            raise FolderError(f"{there} cannot be written.", "", "Choose another --output_dir.")
    except (OSError, ValueError) as error:
        raise no_folder(path, error) from error


def no_folder(path: Path, error: Exception) -> FolderError:
    """Why a run cannot be in a folder, in the words of the system."""
    reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return FolderError(f"{shown_value(path)} cannot be written ({reason}).", "", "Choose another --output_dir.")
