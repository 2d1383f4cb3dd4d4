"""Downloads a model in a process of its own, so that it can be ended at any time.

The process is this file: ``python -m tinydistill_tui.work.download MODEL``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from engine.machine import safe_child
from tinydistill_tui.work import helper


def download(model_id: str, cancelled: Callable[[], bool]) -> str:
    """Download a model into the Hugging Face cache.

    Args:
        model_id: such as ``EleutherAI/pythia-70m``.
        cancelled: asked some times a second; True ends the download; the next one continues from there.

    Returns:
        The problem, a paragraph; empty when the model is there.
    """
    answer = helper.ask(safe_child.command("tinydistill_tui.work.download", model_id), "", cancelled)
    return "The download was stopped; the files so far are kept." if answer is None else answer.problem


def _main() -> None:
    from engine.errors import ModelError
    from engine.model_files.hub import fetch_model

    try:
        fetch_model(sys.argv[1])
    except ModelError as error:
        sys.exit(error.paragraph())


if __name__ == "__main__":
    _main()
