"""Files of a path: a file, or a folder with all its subfolders, in a fixed order."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePath

from engine.data.file_kinds import ALIASES, not_plain
from engine.data.packed import PACKED_SUFFIXES
from engine.data.tally import Tally

ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar"})
"""Suffixes of files that hold other files."""

# Files of programs, of models and of packages under the suffix of a text, which is no text to learn.
_OF_PROGRAMS = frozenset(
    {"requirements.txt", "cmakelists.txt", "robots.txt", "package-lock.json", "composer.json"}
    | {
        "tsconfig.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    | {"special_tokens_map.json", "added_tokens.json", "preprocessor_config.json", "processor_config.json"}
    | {"adapter_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json", "merges.txt", "vocab.txt"}
    | {"trainer_state.json", "top_level.txt", "entry_points.txt", "sources.txt", "chat_template.json"}
)
_FOLDERS_OF_PROGRAMS = frozenset({"node_modules", "__pycache__", "__macosx", "site-packages", "_delta_log"})


@dataclass(frozen=True)
class FoundFile:
    """A file to read.

    Attributes:
        name: below the folder, for messages; bytes that are no text are shown as such.
        size_bytes: as the file system says.
        suffix: in lower case, with its dot; of a compressed file with the one before it: ``.jsonl.gz``.
    """

    path: Path
    name: str
    size_bytes: int
    suffix: str

    @property
    def kind(self) -> str:
        """The usual suffix of the format, without that of the compression; empty for a packed file without another."""
        return usual_suffix(self.suffix)


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case; of a compressed file with the one before it: ``.jsonl.gz``."""
    path = PurePath(name.lower())
    if path.suffix in PACKED_SUFFIXES:
        return PurePath(path.stem).suffix + path.suffix
    return path.suffix


def without_packing(suffix: str) -> str:
    """``.jsonl`` for ``.jsonl.gz``."""
    return suffix.removesuffix(PurePath(f"x{suffix}").suffix) if is_packed(suffix) else suffix


def usual_suffix(suffix: str) -> str:
    """``.md`` for ``.markdown`` and for ``.markdown.gz``."""
    plain = without_packing(suffix)
    return ALIASES.get(plain, plain)


def is_packed(suffix: str) -> bool:
    """Return whether a suffix is that of a compressed file."""
    return PurePath(f"x{suffix}").suffix in PACKED_SUFFIXES


def is_archive(suffix: str) -> bool:
    """Return whether a file of this suffix holds other files."""
    return not {suffix, without_packing(suffix), PurePath(f"x{suffix}").suffix}.isdisjoint(ARCHIVES)


def is_readable(suffix: str, suffixes: frozenset[str]) -> bool:
    """Return whether a file of this suffix may hold text; one that is only compressed may."""
    kind = usual_suffix(suffix)
    return kind in suffixes or (not kind and is_packed(suffix))


def find_files(root: Path, suffixes: frozenset[str], tally: Tally) -> list[FoundFile]:
    """Return all files below a folder with one of the suffixes, sorted by path.

    Links are followed; a folder or file that was already found (a loop, a second link) is not read again. Hidden files
    and folders, those of programs, pipes and other suffixes are counted in ``tally``.
    """
    found: list[FoundFile] = []
    seen: set[tuple[int, int]] = set()

    def count_unreadable(error: OSError) -> None:
        tally.skip_file("folder that cannot be read", 0, where=shown(error.filename or root))

    for folder, folders, names in os.walk(root, followlinks=True, onerror=count_unreadable):
        try:
            status = os.stat(folder)
        except OSError:
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:
            tally.pass_over("folder that was already read (a link)")
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        hidden = [name for name in (*folders, *names) if name.startswith(".")]
        if hidden:
            tally.pass_over("hidden file or folder", len(hidden))
        others = [name for name in folders if name.lower() in _FOLDERS_OF_PROGRAMS]
        for name in others:
            tally.pass_over(f"{shown(name)} (a program's folder)")
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in others)
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
    suffix = suffix_of(path.name)
    other = not_plain(without_packing(suffix))
    try:
        status = path.stat()
    except OSError:
        tally.pass_over("link that leads nowhere")
        return
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        tally.pass_over("pipe, socket or device")
    elif is_archive(suffix):
        tally.skip_beside(f"{suffix} archive (unpack it first)", status.st_size, where=shown(path.relative_to(root)))
    elif other is not None:
        tally.skip_beside(f"{suffix} file ({other.short})", status.st_size, where=shown(path.relative_to(root)))
    elif not is_readable(suffix, suffixes):
        tally.pass_over(f"{shown(suffix)} file" if suffix else "file without a suffix")
    elif path.name.lower() in _OF_PROGRAMS:
        tally.pass_over(f"{shown(path.name)} (a program's file)")
    elif (status.st_dev, status.st_ino) in seen:
        tally.pass_over("file that was already read (a link)")
    else:
        seen.add((status.st_dev, status.st_ino))
        found.append(FoundFile(path, shown(path.relative_to(root)), status.st_size, suffix))
