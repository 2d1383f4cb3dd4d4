"""Downloads a model in a process of its own, so that the screens load nothing of it and it can be ended at any time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

_CODE = """
import sys
from engine.errors import ModelError
from engine.models.hub import fetch_model
try:
    fetch_model(sys.argv[1])
except ModelError as error:
    sys.exit(error.paragraph())
"""
_POLL_SECONDS = 0.2


def download(model_id: str, cancelled: Callable[[], bool]) -> str:
    """Download a model into the Hugging Face cache.

    Args:
        model_id: such as ``EleutherAI/pythia-70m``.
        cancelled: asked some times a second; True ends the download, and what is there is gone on with next time.

    Returns:
        What went wrong, a paragraph; empty when the model is there.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE, model_id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl+C in the terminal is for the screens
    )
    with process:
        while True:
            try:
                _, words = process.communicate(timeout=_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if cancelled():
                    process.terminate()
                    process.communicate()
                    return "The download was ended; what came so far is kept."
            else:
                break
    if process.returncode == 0:
        return ""
    lines = words.strip().splitlines()
    return lines[-1] if lines else f"The download ended with exit code {process.returncode}."
