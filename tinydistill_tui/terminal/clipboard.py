"""Gives text to the clipboard also where tmux would drop it.

A program asks a terminal by an escape code (OSC 52) to copy, and gets no answer. tmux drops the code unless its option
``set-clipboard`` is "on"; by default it is "external", which lets tmux itself copy, and not the programs inside it.
"""

from __future__ import annotations

import os
import subprocess

_SECONDS = 2.0


def give_to_tmux(text: str) -> bool:
    """Store a text in tmux's newest buffer, from which tmux copies it to its terminal; False outside of tmux."""
    if not os.environ.get("TMUX"):
        return False
    words = ["tmux", "load-buffer", "-w", "-"]
    try:
        done = subprocess.run(words, input=text.encode(), capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
