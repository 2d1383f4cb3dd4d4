"""Where things are kept for the next time: measurements of this machine, profiles, runs without a folder of their own.

A run needs none of them. A user may have no home folder (a service, a container under a number without a name), or one
that cannot be written: then nothing is kept, and that is said once. Asking for a place never fails; without a home it
is below a file that is not a folder, so that reading finds nothing there and writing is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from engine.errors import FolderError

_NAME = "tinydistill"
_NOWHERE = Path(os.devnull)


def data() -> Path:
    """Return the default folder of runs."""
    return _found(platformdirs.user_data_path)


def config() -> Path:
    """Where profiles are kept."""
    return _found(platformdirs.user_config_path)


def state() -> Path:
    """Where the programs remember what was done last."""
    return _found(platformdirs.user_state_path)


def cache() -> Path:
    """Where measurements of this machine are kept."""
    return _found(platformdirs.user_cache_path)


def home() -> Path:
    """The user's home folder."""
    try:
        return Path.home()
    except RuntimeError:
        return _NOWHERE


def is_nowhere(path: Path) -> bool:
    """Return whether it is the place of a user without a home folder."""
    return path.is_relative_to(_NOWHERE)


def check_somewhere(path: Path, what: str, instead: str) -> None:
    """Make sure that a place is there, for what the user asked to keep in it.

    Args:
        path: one of the above, or below it.
        what: what would be kept, as in "runs".
        instead: what the user can give, as in "--output_dir".

    Raises:
        FolderError: the user has no home folder.
    """
    if is_nowhere(path):
        raise FolderError(
            f"There is no home folder to keep {what} in.",
            "Neither HOME nor the system's list of users names one.",
            f"Give {instead}, or set HOME to a folder.",
        )


def nothing_is_kept() -> str:
    """The sentence for a user for whom nothing is kept from one time to the next; empty where it is."""
    there = cache()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if is_nowhere(there):
        why = "there is no home folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        why = f"{there} cannot be written"
    else:
        return ""
    return f"Measurements of this machine and the list of runs are not kept, since {why}. HOME can name another folder."


def _found(place: Callable[[str], Path]) -> Path:
    try:
        path = place(_NAME)
    except (RuntimeError, KeyError, OSError):  # no HOME, and no user of this number
        path = Path()
    return path if path.is_absolute() else _NOWHERE / _NAME  # without a home, ~ stays as it is
