"""Whether there is a terminal that a screen can be drawn on. Imports nothing, for it is asked before all else."""

from __future__ import annotations

import os
import sys


def reason() -> str | None:
    """Return why no screen can be drawn; None if one can."""
    for stream, name in ((sys.stdout, "output"), (sys.stdin, "input")):
        if not stream.isatty():
            return f"since the {name} is not a terminal"
    if os.environ.get("TERM") == "dumb":
        return "since TERM is dumb"
    if os.environ.get("ACCESSIBLE"):
        return "since ACCESSIBLE is set"
    return None
