"""Names of splits, as the datasets library reads them from the names of files and folders.

Source: https://huggingface.co/docs/datasets/repository_structure, "Split keywords" and "Custom split name". Knows no
files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The splits, and the words that name them."""

_BORDERS = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"(?P<split>.+?)[-.](\d{5})-of-(\d{5})(?!\d)")
_NO_SPLITS = frozenset({"data", "part", "shard", "chunk", "file", "default", "dataset", "output", "partial"})
_FIELDS = ("split", "Split")
_BY_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}


def split_of_words(name: str) -> str | None:
    """``train``, ``validation`` or ``test`` for a name that has one of their words in it; None for any other."""
    return next((_BY_WORD[word] for word in _BORDERS.split(name.lower()) if word in _BY_WORD), None)


def split_of_row(row: Mapping[str, Any], wanted: str) -> str | None:
    """The split that a row names in a field of its own, where it is another one than that which is read."""
    for name in _FIELDS:
        value = row.get(name)
        found = split_of_words(value) if isinstance(value, str) and " " not in value else None
        if found is not None:
            return value if value != wanted and found != (split_of_words(wanted) or wanted) else None
    return None


def shard_name(name: str) -> str | None:
    """``train_sft`` for ``train_sft-00000-of-00003.parquet``; None for a file that is no shard, or says no split."""
    found = _SHARD.match(name)
    return None if found is None or found["split"].lower() in _NO_SPLITS else found["split"]
