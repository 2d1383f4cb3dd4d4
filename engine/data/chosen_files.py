"""The files of text that ``--data`` names: one file, or those of a folder that can be read."""

from __future__ import annotations

from pathlib import Path

from engine.data.dataset_folder import files_of_split
from engine.data.file_kinds import not_plain
from engine.data.folder import FoundFile, find_files, is_archive, is_readable, shown, suffix_of, without_packing
from engine.data.readers import READERS
from engine.data.split_names import split_of_words
from engine.data.tally import Tally, in_words
from engine.errors import DataError

ACCEPTED = ", ".join(READERS)
"""Suffixes of files that are read, for a message."""

_SUFFIXES = frozenset(READERS)


def files_in(folder: Path, split: str, tally: Tally) -> list[FoundFile]:
    """Find the files of a folder that are read, and count the others.

    Args:
        folder: that ``--data`` names.
        split: of the data set that the folder may hold.
        tally: takes the files that are passed over.

    Raises:
        DataError: no file is left.
    """
    files = find_files(folder, _SUFFIXES, tally)
    if files:
        files = files_of_split(files, folder, split, tally)
    if not files:
        there = in_words(tally.skipped)
        raise DataError(
            f"There is no text in {shown(folder)}.",
            f"It holds only {there}." if there else "The folder is empty.",
            f"Give a file or folder with {ACCEPTED}; plain texts under other names (source code, say) are read under "
            "names that end in .txt.",
        )
    return files


def one_file(path: Path, split: str) -> FoundFile:
    """Return the file that ``--data`` names.

    Raises:
        DataError: its kind is not read, or it is not of the split.
    """
    suffix = suffix_of(path.name)
    if is_archive(suffix):
        raise DataError(
            f"{shown(path)} is an archive, which holds other files.",
            "",
            f"Unpack it, and give the folder with the {ACCEPTED} in it.",
        )
    other = not_plain(without_packing(suffix))
    if other is not None:
        raise DataError(*other.told(shown(path)))
    if not is_readable(suffix, _SUFFIXES):
        raise DataError(
            f"{shown(path)} is not a supported file type.",
            f"Its suffix is {shown(suffix)!r}." if suffix else "It has no suffix.",
            f"Give {ACCEPTED}; a plain text under another name can be renamed to .txt.",
        )
    file = FoundFile(path, shown(path.name), path.stat().st_size, suffix)
    if file.kind != ".json" and split not in ("train", split_of_words(path.name)):
        raise DataError(
            f"There is no split {split!r} in {shown(path)}: it is one file.",
            "A split is a file or a folder of a data set.",
            "Leave out --data_split, or give the folder or the file of that split as --data.",
        )
    return file
