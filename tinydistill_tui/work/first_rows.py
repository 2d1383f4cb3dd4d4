"""Has the first rows made by a process of its own: a tokenizer is too heavy for the screens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from engine.data.row_preview import RowRequest, ShownRow, rows_from_json
from engine.machine import safe_child
from engine.settings.config import RunConfig
from tinydistill_tui.work import helper


def request_for(settings: RunConfig) -> RowRequest:
    """Return the settings that the first rows depend on."""
    return RowRequest(
        teacher=str(settings.teacher),
        data=str(settings.data),
        text_field=settings.text_field,
        data_split=settings.data_split,
        sequence_length=settings.sequence_length or 2,
        packing=settings.packing,
        holdout=settings.holdout,
        trust_remote_code=settings.trust_remote_code,
    )


def make(request: RowRequest, cancelled: Callable[[], bool]) -> tuple[list[ShownRow], str]:
    """The first rows, or none and why; takes seconds.

    Args:
        request: what they depend on.
        cancelled: asked some times a second; True ends it, with no rows and no reason.
    """
    answer = helper.ask(safe_child.command("engine.data.row_preview"), json.dumps(asdict(request)), cancelled)
    if answer is None or answer.problem:
        return [], answer.problem if answer is not None else ""
    try:
        return rows_from_json(answer.text), ""
    except ValueError:
        return [], "the process that makes them answered something else."
