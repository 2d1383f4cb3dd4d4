"""Paths of models on a disk, judged by the names of files alone, as a user chooses one. Loads nothing.

Whether the model can be used is another question, which :mod:`engine.model_files.spec` answers.
"""

from __future__ import annotations

from pathlib import Path

SINGLE = (".gguf",)
"""Endings of files that are a whole model."""
_DESCRIPTIONS = ("config.json", "adapter_config.json")
SHOWN = (*_DESCRIPTIONS, ".safetensors", *SINGLE)
"""Endings of files by which a user recognises a model's folder."""
ONE_OF = ", ".join((*_DESCRIPTIONS, *(f"*{ending}" for ending in SINGLE)))
"""Files of which a model's folder has at least one."""


def is_model_file(path: Path) -> bool:
    """Return whether a path is a file that is a whole model."""
    return path.suffix.lower() in SINGLE and path.is_file()


def is_model(path: Path) -> bool:
    """Return whether a path is that of a model: its file, or a folder with one or with its description."""
    if is_model_file(path) or any((path / name).is_file() for name in _DESCRIPTIONS):
        return True
    try:
        return any(entry.suffix.lower() in SINGLE for entry in path.iterdir())
    except OSError:  # no folder, or none that this user may read
        return False


def name_of(file: Path) -> str:
    """Return the name of a model that is one file."""
    return file.stem if file.suffix.lower() in SINGLE else file.name
