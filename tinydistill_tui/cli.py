"""``tinydistill-tui``: the program's entry point.

Without settings the first screen is drawn before the engine is imported. With settings they are read first, in
``command``, so that a wrong one is reported before the screen is taken.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

from engine.cli import streams
from tinydistill_tui.terminal import screenless

_SWITCHES = {"--ascii", "--no_mouse", "--no_animation"}


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``tinydistill-tui``."""
    words = sys.argv[1:] if words is None else words
    streams.make_fit()
    if sys.platform != "win32" and _only_switches(words) and screenless.reason() is None:
        return _at_once({word.removeprefix("--"): True for word in map(_underscored, words)})
    from tinydistill_tui import command

    return command.main(words)


def _only_switches(words: Sequence[str]) -> bool:
    return all(_underscored(word) in _SWITCHES for word in words)


def _underscored(word: str) -> str:
    return "--" + word.removeprefix("--").replace("-", "_")


def _at_once(switches: dict[str, Any]) -> int:
    """Show the first screen; the rest is imported behind it.

    Imports make objects that stay, and a tenth of their time goes into looking for garbage among them: that begins
    when the first screen is there.
    """
    gc.disable()
    from tinydistill_tui.app import run_app
    from tinydistill_tui.terminal.appearance import draws_only_ascii

    if draws_only_ascii(sys.stdout.encoding, os.environ.get("TERM", "")):
        switches["ascii"] = True
    return run_app({}, options=switches)


if __name__ == "__main__":
    sys.exit(main())
