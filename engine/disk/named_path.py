"""Paths as a user names them, on a command line or in a field."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from engine.errors import FolderError, shown_value


def named_path(name: str | Path) -> Path:
    """The path of a name, which need not exist; ``~`` is the home folder.

    Raises:
        FolderError: no file can have this name.
    """
    try:
        path = Path(name).expanduser()
        os.lstat(path)
    except RuntimeError:  # of expanduser
        raise FolderError(f"There is no folder {name}.", "There is no user of that name.", "Name a path.") from None
    except ValueError:
        raise FolderError(f"There is no folder {name!r}.", "The name has a null character.", "Name a path.") from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # it is not there yet, or cannot be looked at: its reader says so
            return path
        raise FolderError(f"There is no folder {shown_value(name)}.", "The name is too long.", "Name a path.") from None
    return path
