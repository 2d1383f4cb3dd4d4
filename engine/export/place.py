"""The place of an export: what may be there, and how a folder appears there whole.

A failed export leaves what was there before, and no part of a model. Knows nothing of models' content.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.disk.fault import commit_point
from engine.disk.files import NO_ROOM, fsync_file, fsync_folder, make_folder, no_room
from engine.errors import DiskFull, FolderError, Problem, SettingsError

_OF_A_MODEL = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "vocab.*",
    "special_tokens_map.json", "added_tokens.json", "merges.txt", "*.model", "*.tiktoken", "chat_template*",
)  # fmt: skip
_LAST = "config.json"  # a folder without one is not taken for a model
_ABANDONED_SECONDS = 600  # a writer on another machine of a shared folder changes its file more often


def check_place(out: Path, *, is_folder: bool, force: bool, sources: Sequence[Path]) -> None:
    """Make sure that an export can be written to a path; nothing is made.

    Args:
        out: the path.
        is_folder: whether a folder is written, or a file.
        force: whether what is there is replaced.
        sources: files and folders that the export is made from.

    Raises:
        SettingsError: something is there and is not to be replaced.
        FolderError: something else than is to be written is there, or nothing can be written.
    """
    wanted, another = "folder" if is_folder else "file", "Choose another --out."
    if out.exists() and not force:
        raise SettingsError([Problem("out", str(out), "exists already; choose another path, or add --force")], "")
    if any(source.exists() and out.exists() and out.samefile(source) for source in sources):
        raise FolderError(f"{out} is the model itself.", "It is read while the export is written.", another)
    if os.path.lexists(out) and not (out.is_dir() if is_folder else out.is_file()):
        kind = "a folder" if out.is_dir() else "a file" if out.is_file() else "neither a file nor a folder"
        raise FolderError(f"{out} is {kind}.", f"The export is a {wanted}.", another)
    there = out if is_folder else out.absolute().parent
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise FolderError(f"{out} cannot be written.", f"{there} is no folder.", another)
    if not os.access(there, os.W_OK | os.X_OK):
        raise FolderError(f"{out} cannot be written.", f"{there} is read-only for this user.", another)


def temporary_for(out: Path) -> Path:
    """Return a path beside an export for what is not whole yet, and remove what killed exports to the same place left.

    The remains of a large model take as much of the disk as the model.
    """
    for left_behind in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # removed meanwhile
            if time.time() - max(path.stat().st_mtime for path in (left_behind, *left_behind.rglob("*"))) > (
                _ABANDONED_SECONDS
            ):
                shutil.rmtree(left_behind) if left_behind.is_dir() else left_behind.unlink()
    return out.with_name(f".{out.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def folder_written_whole(out: Path) -> Iterator[Path]:
    """Give a new folder to write to, whose files are in ``out`` at the end of the context.

    Files of another model in ``out``, such as shards and their index, are removed where the new folder has a model.

    Raises:
        DiskFull: there was no room; ``out`` is as it was.
    """
    temporary = temporary_for(out)
    try:
        make_folder(out.parent)
        temporary.mkdir()
        yield temporary
        _move(temporary, out)
    except DiskFull as error:  # a person knows nothing of the other folder
        raise DiskFull(f"There was no room to write {out}.", error.why, error.todo) from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise no_room(f"There was no room to write {out}.", error, then="or choose another --out") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_folder(source: Path, out: Path, *, without: Sequence[Path] = ()) -> None:
    """Copy a folder's files into another folder, which is there.

    Args:
        source: the folder.
        out: where to.
        without: paths in the source that are not copied.
    """
    paths = [path for path in sorted(source.rglob("*")) if not {path, *path.parents} & {out, *without}]
    for path in paths:
        copied = out / path.relative_to(source)
        if path.is_dir():
            copied.mkdir(exist_ok=True)
            continue
        shutil.copyfile(path, copied)
        fsync_file(copied)


def _move(temporary: Path, out: Path) -> None:
    commit_point("export-written")
    if not out.exists():
        temporary.rename(out)
        fsync_folder(out.parent)
        return
    new = {path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file()}
    if Path(_LAST) in new:
        for old in sorted({path for pattern in _OF_A_MODEL for path in out.glob(pattern) if path.is_file()}):
            if old.name == _LAST or Path(old.name) not in new:
                old.unlink()
    for name in sorted(new, key=lambda each: (str(each) == _LAST, each)):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).replace(out / name)
    fsync_folder(out)
