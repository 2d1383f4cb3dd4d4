"""Selection of one split's files in a data set's folder, as the datasets library does it.

A folder from the hub, or one that save_to_disk wrote, has a card, a licence, descriptions and several splits; only the
training split is text to train on. Other folders, such as a folder of notes, are read completely.

Source: https://huggingface.co/docs/datasets/repository_structure
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from engine.data.folder import FoundFile, shown
from engine.data.split_names import shard_name, split_of_words
from engine.data.tally import Tally
from engine.errors import DataError

Place = tuple[str, ...]

_PROSE = frozenset({".txt", ".md"})
_DESCRIPTIONS = frozenset({"dataset_infos.json", "dataset_info.json", "dataset_dict.json"})
_ABOUT = re.compile(
    r"(?:(?P<card>readme|dataset_?card|data_?card)|(?P<licence>licen[cs]e|copying|notice))(?:[-_.]\S*)?|"
    r"(?P<other>(?:citation|changelog|contributing|code_of_conduct|security|authors)(?:\.\w+)?)",
    re.IGNORECASE,
)
_CARD_KEYS = re.compile(
    rb"^(license|task_categories|task_ids|size_categories|dataset_info|configs|pretty_name|annotations_creators|"
    rb"source_datasets|multilinguality|language|language_creators)\s*:",
    re.MULTILINE,
)
_CARD_BYTES = 256 * 2**10


@dataclass(frozen=True)
class _Marked:
    """A file with the split that its path indicates.

    Attributes:
        file: the file.
        place: its folders below the one that was named, and its name.
        split: ``train``, ``validation``, ``test`` or None.
        names: what it is called by: the split, the shards' name, the folder's.
        root: the folder of the data set that it is of.
    """

    file: FoundFile
    place: Place
    split: str | None
    names: frozenset[str]
    root: Place

    @property
    def is_table(self) -> bool:
        return self.file.kind not in _PROSE


def files_of_split(files: Sequence[FoundFile], folder: Path, split: str, tally: Tally) -> list[FoundFile]:
    """Return the files of the split, in order; the others are counted.

    Args:
        files: that can be read.
        folder: in which they were found.
        split: the split's name; several are joined by ``+``.
        tally: receives skipped files with reasons.

    Raises:
        DataError: the folder has no such split.
    """
    data = [file for file in files if not _is_description(file, files, tally)]
    by_card = _splits_of_cards(data)
    marked = [by_card.get(file.path) or _marked(file, folder) for file in data]
    wanted = frozenset(name.strip() for name in split.split("+"))
    if wanted != {"train"}:
        return _named(marked, wanted, folder, tally)
    sets = _data_sets(marked)
    about = {each.file.path for each in marked if _is_about(each, marked, sets)}
    kept = []
    for each in marked:
        above = (each.place[:depth] for depth in range(len(each.place) + 1))  # the outermost data set first
        root = next((place for place in above if place in sets), None)
        if each.file.path in about:
            tally.pass_over(_about(each))
        elif root is None or each.split == "train":
            kept.append(each.file)
        elif each.split is not None:
            tally.pass_over(f"file of the split {each.split!r}")
        elif sets[root]:
            tally.pass_over("file of no split of the data set")
        else:
            kept.append(each.file)
    return kept


def _named(marked: list[_Marked], wanted: frozenset[str], folder: Path, tally: Tally) -> list[FoundFile]:
    """Return the files of the splits that the user named."""
    kept = [each for each in marked if each.names & wanted]
    others = [each for each in marked if not each.names & wanted]
    if not kept:
        there = sorted({name for each in marked for name in each.names if re.fullmatch(r"\w+", name)})
        raise DataError(
            f"There is no split {'+'.join(sorted(wanted))!r} in {shown(folder)}.",
            f"Its files are of the splits {', '.join(map(repr, there))}."
            if there
            else "Its file and folder names do not name splits.",
            "Choose one of these with --data_split." if there else "Leave out --data_split.",
        )
    for each in others:
        if _ABOUT.fullmatch(each.place[-1]) and not each.is_table:
            tally.pass_over(_about(each))
        else:
            tally.pass_over(f"file of the split {each.split!r}" if each.split else "file of no split of the data set")
    return [each.file for each in kept]


def _data_sets(marked: list[_Marked]) -> dict[Place, bool]:
    """The roots of data sets, outermost first, and whether what is of no split in them is no text."""
    found: dict[Place, bool] = {}
    by_root: dict[Place, list[_Marked]] = {}
    by_folder: dict[Place, list[_Marked]] = {}
    for each in marked:
        by_root.setdefault(each.root, []).append(each)
        by_folder.setdefault(each.place[:-1], []).append(each)
    for root in sorted({each.root for each in marked if each.split is not None}, key=lambda root: (len(root), root)):
        here = by_root[root]
        train = [each for each in here if each.split == "train"]
        tested = [each for each in here if each.split in ("validation", "test")]
        if any(each.is_table for each in train):
            found[root] = True
        elif (train and tested) or (tested and not train and _beside(by_folder.get(root, []), root)):
            found[root] = False
    return found


def _beside(here: list[_Marked], root: Place) -> bool:
    """Return whether tables of no split stand beside tables of a test split: ``corpus.jsonl`` beside ``test.jsonl``."""
    kinds = {each.file.kind for each in here if each.is_table and each.root == root and each.split is not None}
    return any(each.split is None and each.file.kind in kinds for each in here)


def _marked(file: FoundFile, folder: Path) -> _Marked:
    place = file.path.relative_to(folder).parts
    stem = place[-1][: len(place[-1]) - len(file.suffix)]
    shards = shard_name(place[-1])
    if file.kind != ".md" and (split := split_of_words(shards or stem)) is not None:
        root = place[:-2] if place[-2:-1] == ("data",) else place[:-1]
        return _Marked(file, place, split, frozenset({split, shards or stem}), root)
    for depth in range(len(place) - 2, -1, -1):
        if (split := split_of_words(place[depth])) is not None:
            return _Marked(file, place, split, frozenset({split, place[depth]}), place[:depth])
    return _Marked(file, place, None, frozenset({shards} if shards else ()), place[:-1])


def _is_below(each: _Marked, root: Place) -> bool:
    return each.place[: len(root)] == root


def _is_description(file: FoundFile, files: Sequence[FoundFile], tally: Tally) -> bool:
    """Return whether a file is one that the datasets library writes beside the data; counted."""
    name = file.path.name
    # The files beside it are gone through for this one name alone: a folder may have 100,000 files.
    if name in _DESCRIPTIONS or (
        name == "state.json"
        and any(
            other.path.name.endswith(".arrow") or other.path.name in _DESCRIPTIONS
            for other in files
            if other.path.parent == file.path.parent
        )
    ):
        tally.pass_over(f"{name} (description of the data set)")
        return True
    if file.kind == ".arrow" and name.startswith("cache-"):
        tally.pass_over("cache file of the datasets library")
        return True
    return False


def _is_about(each: _Marked, marked: list[_Marked], sets: dict[Place, bool]) -> bool:
    """Return whether a file is about the data: a card, a licence. Beside notes it is one of them."""
    if each.is_table or not _ABOUT.fullmatch(each.place[-1]):
        return False
    here = each.place[:-1]
    below = [other for other in marked if _is_below(other, here) and other is not each]
    if any(_is_below(each, root) for root in sets):
        return True
    if not any(other.is_table for other in below):
        return False
    return (
        any(root[: len(here)] == here for root in sets)
        or any(other.place[:-1] == here and _is_card(other.file) for other in (*below, each))
        or all(other.is_table or _ABOUT.fullmatch(other.place[-1]) for other in below)
    )


def _about(each: _Marked) -> str:
    found = _ABOUT.fullmatch(each.place[-1])
    kind = found.lastgroup if found else "other"
    words = {"card": "the data set's card", "licence": "licence"}.get(kind or "", "about the data set")
    return f"{shown(each.place[-1])} ({words})"


def _card_head(file: FoundFile) -> bytes:
    """The YAML at the beginning of a README.md; nothing where there is none."""
    if file.path.name.lower() != "readme.md":
        return b""
    try:
        with file.path.open("rb") as opened:
            text = opened.read(_CARD_BYTES).removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    except OSError:
        return b""
    if not text.startswith(b"---\n"):
        return b""
    head, found, _ = text[4:].partition(b"\n---")
    return head if found else b""


def _is_card(file: FoundFile) -> bool:
    return bool(_CARD_KEYS.search(_card_head(file)))


def _splits_of_cards(files: Sequence[FoundFile]) -> dict[Path, _Marked]:
    """The splits that cards name for files (``configs: … data_files: …``), by the files' paths."""
    found: dict[Path, _Marked] = {}
    for card in files:
        head = _card_head(card)
        if b"data_files" not in head:
            continue
        base = card.path.parent
        below = [file for file in files if file.path.is_relative_to(base) and file is not card]
        root = Path(card.name).parent.parts
        patterns = _data_files(head)
        for file in below if patterns else []:
            inside = file.path.relative_to(base)
            named = next((split for split, each in patterns if any(_matches(inside, one) for one in each)), None)
            names = frozenset({named} if named else ())
            found.setdefault(file.path, _Marked(file, (*root, *inside.parts), named, names, root))
    return found


def _data_files(head: bytes) -> list[tuple[str, list[str]]]:
    """Splits and the patterns of their files; none from YAML that cannot be read."""
    import yaml  # comes with transformers

    try:
        card = yaml.safe_load(head.decode("utf-8", "replace"))
    except yaml.YAMLError:
        return []
    configs = card.get("configs") if isinstance(card, dict) else None
    found: list[tuple[str, list[str]]] = []
    for config in configs if isinstance(configs, list) else []:
        files = config.get("data_files") if isinstance(config, dict) else None
        if isinstance(files, str) or (isinstance(files, list) and all(isinstance(each, str) for each in files)):
            found.append(("train", _strings(files)))
        for each in files if isinstance(files, list) else []:
            if isinstance(each, dict) and isinstance(each.get("split"), str):
                found.append((each["split"], _strings(each.get("path"))))
    return found


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


def _matches(inside: Path, pattern: str) -> bool:
    """Return whether a path is meant by a pattern; ``*`` ends at a folder's border, ``**`` does not."""
    parts = PurePosixPath(pattern.removeprefix("./")).parts
    return _match_parts(inside.parts, parts)


def _match_parts(names: Place, patterns: Place) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_match_parts(names[skipped:], patterns[1:]) for skipped in range(len(names) + 1)) or (
            len(patterns) == 1 and bool(names)
        )
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _match_parts(names[1:], patterns[1:])
