"""Start of this program's own processes: they import nothing from the user's current folder.

``python -m`` looks for every module in the current folder first, so a ``random.py`` or ``token.py`` there would be run
by us, with the user's rights. A child is started in Python's safe-path mode (``-P``), and gets the path of
this package. The user's own PYTHONPATH stays.

This file is the program that a child runs: ``python -P engine/machine/safe_child.py MODULE [WORDS]``. It imports
nothing but the standard library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO


def command(module: str, *words: str) -> list[str]:
    """The command that runs a module of this program in a process of its own.

    Args:
        module: such as ``engine.phases.process``.
        words: its arguments.
    """
    return [sys.executable, "-P", os.path.abspath(__file__), module, *words]


_OWN = {
    "tiny-distill": "engine.cli.distill",
    "tiny-distill-cache": "engine.cli.cache",
    "tiny-distill-chat": "engine.cli.chat",
    "tiny-distill-eval": "engine.cli.eval",
    "tiny-distill-export": "engine.cli.export",
    "tiny-distill-profile": "engine.cli.profile",
}


def own_program(words: Sequence[str]) -> list[str]:
    """The same command with this installation's own programs and interpreter, wherever the shell would look."""
    if words[0] in _OWN:
        return command(_OWN[words[0]], *words[1:])
    return [sys.executable, *words[1:]] if words[0] == "python" else list(words)


def environment(of: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child; processes that libraries start are safe in the same way.

    An empty entry of PYTHONPATH, as ``PYTHONPATH=$PYTHONPATH:/x`` leaves it, means the current folder. It is removed.
    So are variables that make Python another one: without the docstrings that transformers reads, or with a prompt at
    the end; and times for downloads that are no numbers.

    Args:
        of: instead of this process's own.
    """
    found = {**(os.environ if of is None else of), "PYTHONSAFEPATH": "1"}
    for name in ("PYTHONOPTIMIZE", "PYTHONINSPECT"):
        found.pop(name, None)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):  # else the hub's client cannot even be imported
        if not found.get(name, "0").isdecimal():
            del found[name]
    if "PYTHONPATH" in found:
        found["PYTHONPATH"] = os.pathsep.join(filter(None, found["PYTHONPATH"].split(os.pathsep)))
    return found


def answers() -> TextIO:
    """Return standard output for this child's answers; later prints go to standard error.

    Libraries and the code of a model may print, and their lines are no answers.
    """
    found = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return found


def _main() -> None:
    import runpy

    here = os.path.abspath(__file__)
    for _ in range(3):  # out of machine/ and engine/
        here = os.path.dirname(here)
    if here not in sys.path:
        sys.path.append(here)  # behind the standard library and what is installed
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
