"""Commands of one line of Python for the user to type."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path


def python_command() -> str:
    """The Python that runs this program, as a shell's word.

    The shell's own ``python`` may be another one, without this program's packages: so it is after an installation by
    pipx, or without an activated environment.
    """
    return shlex.quote(sys.executable)


def python_line(code: str) -> str:
    """A shell command that runs code, and imports nothing from the current folder (``-P``)."""
    return f"{python_command()} -P -c {shlex.quote(code)}"


def path_literal(path: Path | str) -> str:
    """A path as a Python string in double quotes: the shell keeps such code in single quotes, unescaped."""
    return json.dumps(str(path), ensure_ascii=False)
