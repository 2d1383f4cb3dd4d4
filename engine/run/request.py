"""Checks before the folder of a run is created: an invalid request leaves no files behind.

Reads folders, headers and tokenizers, but no text and no weights. Checks that need a tokenizer or torch
is found by the first phase, before anything large is made. Knows nothing of memory: that is the planner's question.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from engine import ranks
from engine.data.checks import check_models
from engine.errors import FolderError, shown_value
from engine.model_files.spec import read_spec
from engine.planner.models import FROM_TEACHER
from engine.run.new_folder import check_new_folder
from engine.settings.config import RunConfig

_NAMES_OF_FILES = ("teacher", "student", "data")
_FOLDERS = ("output_dir", "cache_dir")


def check_request(settings: RunConfig) -> None:
    """Check a planned run before it is made.

    Args:
        settings: with every choice made.

    Raises:
        RequestError: variables of the environment make it one of several, and it is none.
        FolderError: a folder that is to be written cannot be, or holds something else.
        TokenizerMismatch, ModelError, SettingsError: the models do not go together.
    """
    assert settings.output_dir is not None, "the planner resolves every setting"
    check_ranks(settings)
    _check_names(settings)
    check_new_folder(settings.output_dir)
    if settings.cache_dir is not None:
        _check_shared_folder(settings.cache_dir)
    assert settings.teacher is not None
    assert settings.sequence_length is not None
    teacher = read_spec(settings.teacher, trust_remote_code=settings.trust_remote_code)
    student = None
    if settings.student is not None and settings.student != FROM_TEACHER:
        student = read_spec(settings.student, trust_remote_code=settings.trust_remote_code)
    check_models(teacher, student, settings.sequence_length)


def check_ranks(settings: RunConfig) -> None:
    """Check the variables of the environment that make a process one of several.

    Raises:
        RequestError: they name no rank, or this run is none.
    """
    ranks.share_by_hand(settings, os.environ)
    ranks.limit_seconds(os.environ)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same request with paths that mean the same from everywhere: a run is resumed from another folder too.

    Ids and other names that are no file here stay as they are.
    """
    changed: dict[str, Any] = {}
    for name in (*_NAMES_OF_FILES, *_FOLDERS):
        value = getattr(config, name)
        if value is None or name not in config.model_fields_set:
            continue
        path = _absolute(value)
        if path is not None and (name in _FOLDERS or os.path.lexists(path)):
            changed[name] = path if name in _FOLDERS else str(path)
    return config.model_copy(update=changed)


def _check_names(settings: RunConfig) -> None:
    """Refuse paths with bytes that are no text: run.json, events and the student's card could not name them.

    Raises:
        FolderError: one has some.
    """
    for name in (*_NAMES_OF_FILES, *_FOLDERS):
        value = getattr(settings, name)
        path = None if value is None else _absolute(value)
        text = str(path) if path is not None and (name in _FOLDERS or os.path.lexists(path)) else str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise FolderError(
                f"The path of --{name} holds bytes that are no UTF-8: {shown_value(text)}.",
                "A run keeps its paths as text.",
                "Rename that folder or file (mv, or convmv for many), and start again from there.",
            ) from None


def _absolute(value: str | Path) -> Path | None:
    try:
        return Path(os.path.abspath(Path(value).expanduser()))
    except (RuntimeError, ValueError):  # the home of an unknown user, or an invalid file name
        return None


def _check_shared_folder(path: Path) -> None:
    path = path.expanduser().absolute()
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    why = ""
    if not there.is_dir():
        why = f"{there} is a file." if there.is_file() else f"{there} is not a folder."
    elif not os.access(there, os.W_OK | os.X_OK):
        why = f"{there} cannot be written."
    if why:
        raise FolderError(f"The records cannot be kept in {path}.", why, "Choose another --cache_dir.")
