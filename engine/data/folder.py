"""Which files of a path are read: a file, or a folder with everything below it, in an order that does not change."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from engine.data.tally import Tally


@dataclass(frozen=True)
class FoundFile:
    """A file to read.

    Attributes:
        name: below the folder, for messages; bytes that are no text are shown as such.
        size_bytes: as the file system says.
        suffix: in lower case, with its dot.
    """

    path: Path
    name: str
    size_bytes: int
    suffix: str


def find_files(root: Path, suffixes: frozenset[str], tally: Tally) -> list[FoundFile]:
    """All files below a folder that have one of the suffixes, sorted by path.

    Links are followed; a folder or a file that was met before (a loop, a second link) is not read again. Hidden files
    and folders, pipes and other suffixes are counted in ``tally``.
    """
    found: list[FoundFile] = []
    seen: set[tuple[int, int]] = set()

    def count_unreadable(_: OSError) -> None:
        tally.skip("folder that cannot be read")

    for folder, folders, names in os.walk(root, followlinks=True, onerror=count_unreadable):
        try:
            status = os.stat(folder)
        except OSError:
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:
            tally.skip("folder that was met before (a link)")
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        hidden = [name for name in (*folders, *names) if name.startswith(".")]
        if hidden:
            tally.skip("hidden file or folder", len(hidden))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                _look_at(Path(folder, name), root, suffixes, seen, tally, found)
    return sorted(found, key=lambda file: os.fsencode(file.path))


def shown(path: str | Path) -> str:
    """A path as text that can be printed and written as UTF-8, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _look_at(
    path: Path,
    root: Path,
    suffixes: frozenset[str],
    seen: set[tuple[int, int]],
    tally: Tally,
    found: list[FoundFile],
) -> None:
    suffix = path.suffix.lower()
    try:
        status = path.stat()
    except OSError:
        tally.skip("link that leads nowhere")
        return
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        tally.skip("pipe, socket or device")
    elif suffix not in suffixes:
        tally.skip(f"{shown(suffix)} file" if suffix else "file without a suffix")
    elif (status.st_dev, status.st_ino) in seen:
        tally.skip("file that was met before (a link)")
    else:
        seen.add((status.st_dev, status.st_ino))
        found.append(FoundFile(path, shown(path.relative_to(root)), status.st_size, suffix))
