"""Removable files in a folder of caches: remains of kills and damage, and caches that no run uses.

Files that a program has open and files of other programs are not removed; a folder is removed if it is empty
afterwards.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.cache.check import leftovers
from engine.cache.identity import MANIFEST
from engine.cache.journal import JOURNAL, PATTERNS
from engine.cache.locks import IN_USE, WRITER, Locks
from engine.cache.store import USED_BY, CacheStore, caches_below
from engine.errors import TinyDistillError

_DAY_SECONDS = 86_400
_OURS = (*PATTERNS, "*.tmp", "*.bad", USED_BY)


@dataclass(frozen=True)
class Garbage:
    """A removable file or cache.

    Attributes:
        path: a file, or the folder of a whole cache.
        kind: which of the two.
        bytes: bytes that its removal frees.
        why: the reason, a sentence fragment.
    """

    path: Path
    kind: Literal["leftover", "cache"]
    bytes: int
    why: str


def find_garbage(
    folder: Path, *, now: float, older_than_seconds: float | None = None, keep: int | None = None
) -> tuple[list[Garbage], list[str]]:
    """Return what can be removed in a cache, or in the caches directly below a folder.

    Args:
        folder: a cache, or a shared folder of caches.
        now: Unix seconds.
        older_than_seconds: also remove caches that no program has opened for this long.
        keep: also remove caches, except this many of those opened last.

    Returns:
        The removable items, and sentences about requested items that cannot be removed.
    """
    found: list[Garbage] = []
    kept: list[str] = []
    caches = sorted(caches_below(folder), key=last_used, reverse=True)
    for place, cache in enumerate(caches):
        age = now - last_used(cache)
        too_old = older_than_seconds is not None and age >= older_than_seconds
        too_many = keep is not None and place >= keep
        if too_old or too_many:
            reason = _needed_by(cache)
            if reason is None:
                found.append(Garbage(cache, "cache", _folder_bytes(cache), f"not opened for {_days(age)}"))
                continue
            kept.append(f"{cache} is kept: {reason}.")
        found += _leftovers(cache, kept)
    return found, kept


def remove(garbage: Garbage) -> int:
    """Remove the item unless a program has opened it meanwhile; return the freed bytes."""
    cache = garbage.path if garbage.kind == "cache" else garbage.path.parent
    locks = Locks(cache)
    try:
        if not (locks.try_alone() if garbage.kind == "cache" else locks.try_writer()):
            return 0
        if garbage.kind == "leftover":
            garbage.path.unlink(missing_ok=True)
        else:
            _remove_cache(cache)
        return garbage.bytes
    finally:
        locks.release()


def last_used(cache: Path) -> float:
    """Return when a cache was last opened, in Unix seconds."""
    for name in (IN_USE, JOURNAL, MANIFEST):
        if (cache / name).exists():
            return (cache / name).stat().st_mtime
    return time.time()


def users(cache: Path) -> list[Path]:
    """Return the existing folders of the runs that opened a cache."""
    found = []
    try:
        lines = (cache / USED_BY).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    if (cache.parent / "run.json").exists():
        found.append(cache.parent)
    for line in lines:
        try:
            run = Path(json.loads(line)["run"])
            if run not in found and (run / "run.json").exists():
                found.append(run)
        except (ValueError, KeyError, TypeError, OSError):
            continue
    return found


def _needed_by(cache: Path) -> str | None:
    if (cache.parent / "run.json").exists():
        return f"it belongs to the run in {cache.parent}"
    unfinished = [run for run in users(cache) if not (run / "report.json").exists()]
    if unfinished:
        return f"the run in {unfinished[0]} is not finished"
    locks = Locks(cache)
    try:
        return None if locks.try_alone() else "a program has it open"
    finally:
        locks.release()


def _leftovers(cache: Path, kept: list[str]) -> list[Garbage]:
    locks = Locks(cache)
    try:
        if not locks.try_writer():  # a file that looks left over may be one that is being written
            kept.append(f"{cache} was not touched: a run is writing to it.")
            return []
        with CacheStore.look(cache) as store:
            files = leftovers(store)
    except TinyDistillError as error:
        kept.append(f"{cache} was not touched: {error.what}")
        return []
    finally:
        locks.release()
    return [Garbage(file, "leftover", file.stat().st_size, _why(file)) for file in files]


def _why(file: Path) -> str:
    if file.suffix == ".bad":
        return "damaged, its rows were or will be scored again"
    return "half-written" if file.suffix == ".tmp" else "not named by the journal"


def _remove_cache(cache: Path) -> None:
    # Remove the journal first and the manifest last: a kill in between leaves an empty cache, not unidentified records.
    (cache / JOURNAL).unlink(missing_ok=True)
    for pattern in _OURS:
        for file in cache.glob(pattern):
            file.unlink(missing_ok=True)
    for name in (MANIFEST, WRITER, IN_USE):
        (cache / name).unlink(missing_ok=True)
    if not any(cache.iterdir()):
        cache.rmdir()


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _days(seconds: float) -> str:
    days, hours = int(seconds / _DAY_SECONDS), int(seconds / _DAY_SECONDS * 24)
    if days:
        return f"{days} days" if days != 1 else "a day"
    return "less than an hour" if hours == 0 else f"{hours} hours" if hours != 1 else "an hour"
