"""A disk that loses power: what a run's folder may look like afterwards.

While a :class:`Disk` listens, every ``fsync`` is noted instead of done. After a power cut only what was flushed is sure
to be there: of a file its bytes when it was flushed last, of a folder its names when *it* was flushed last. Anything
else may be old, new, torn or gone, and each of these states is legal:

    lost     nothing that was not flushed is there
    names    every name is there, and files that were not flushed are empty or torn (names reach the disk before data)
    mixed    each name and each file is old, new or torn by chance

Notes are kept in a folder, so that the notes of a process that was killed are there for the one that looks.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

Mode = Literal["lost", "names", "mixed"]
MODES: tuple[Mode, ...] = ("lost", "names", "mixed")
_MARK = "user.tinydistill-crash"


class Disk:
    """The part of a folder that is sure to outlast a power cut.

    Args:
        root: the folder; as it is now, it is on the disk.
        notes: a folder for notes; another process may continue them.
    """

    def __init__(self, root: Path, notes: Path) -> None:
        self.root = root
        self.notes = notes
        self._held: list[int] = []  # an open descriptor keeps an inode's number from being given to another file
        if not notes.exists():
            notes.mkdir(parents=True)
            self._settle(root)

    def _settle(self, path: Path) -> None:
        if path.is_dir():
            for entry in path.iterdir():
                self._settle(entry)
        descriptor = os.open(path, os.O_RDONLY)
        self.fsync(descriptor)
        os.close(descriptor)

    def fsync(self, descriptor: int) -> None:
        """Note what is flushed; takes the place of ``os.fsync``."""
        status = os.fstat(descriptor)
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not place.is_relative_to(self.root):
            return
        self._held.append(os.dup(descriptor))
        note = self.notes / _key(place)
        aside = note.with_name(f"{note.name}.{os.getpid()}.tmp")
        if stat.S_ISDIR(status.st_mode):
            names = {entry.name: [_key(entry), entry.is_dir()] for entry in place.iterdir()}
            aside.write_text(json.dumps(names))
        else:
            aside.write_bytes(place.read_bytes())
        aside.replace(note)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the place of ``os.fsync`` for a while."""
        real = os.fsync
        os.fsync = self.fsync  # type: ignore[assignment]
        try:
            yield
        finally:
            os.fsync = real
            while self._held:
                os.close(self._held.pop())

    def after_power_loss(self, out: Path, mode: Mode, seed: int = 0) -> None:
        """Write to ``out`` what the folder may look like if the power goes now."""
        _Rebuild(self.notes, mode, random.Random(seed)).folder(_key(self.root), self.root, out)


class _Rebuild:
    def __init__(self, notes: Path, mode: Mode, chance: random.Random) -> None:
        self._notes = notes
        self._mode = mode
        self._chance = chance

    def folder(self, key: str, now: Path | None, out: Path) -> None:
        out.mkdir()
        flushed = self._flushed_names(key)
        current = {entry.name: (_key(entry), entry.is_dir()) for entry in now.iterdir()} if now else flushed
        for name in sorted({*flushed, *current}):
            chosen = self._choose(flushed.get(name), current.get(name))
            if chosen is None:
                continue
            child, is_folder = chosen
            place = now / name if now and current.get(name) == chosen else None
            if is_folder:
                self.folder(child, place, out / name)
            else:
                (out / name).write_bytes(self._content(child, place))

    def _choose(self, flushed: tuple[str, bool] | None, current: tuple[str, bool] | None) -> tuple[str, bool] | None:
        if self._mode == "lost":
            return flushed
        return current if self._mode == "names" else self._chance.choice([flushed, current])

    def _content(self, key: str, now: Path | None) -> bytes:
        note = self._notes / key
        flushed = note.read_bytes() if note.exists() else b""
        current = now.read_bytes() if now else flushed
        if self._mode == "lost" or current == flushed:
            return flushed
        # Appended bytes may be torn, but not those that were flushed before.
        kept = len(flushed) if current.startswith(flushed) else 0
        torn = current[: self._chance.randrange(kept, len(current) + 1)]
        return self._chance.choice([current[:kept], torn] if self._mode == "names" else [flushed, current, torn])

    def _flushed_names(self, key: str) -> dict[str, tuple[str, bool]]:
        note = self._notes / key
        found = json.loads(note.read_text()) if note.exists() else {}
        return {name: (child, is_folder) for name, (child, is_folder) in found.items()}


class Cuts:
    """Cuts the power at every step of a protocol: before and after each flush, rename and removal.

    Each cut leaves a folder for each way of losing, with what the protocol had acknowledged by then. It listens to the
    whole process, so nothing else may write meanwhile.

    Attributes:
        acknowledged: set by the protocol after each step that it has called done.
        states: the folders, what was acknowledged, and where the power went.
    """

    def __init__(self, disk: Disk, out: Path) -> None:
        self.acknowledged = 0
        self.states: list[tuple[Path, int, str]] = []
        self._disk = disk
        self._out = out
        self._is_cutting = False

    @contextlib.contextmanager
    def everywhere(self) -> Iterator[None]:
        """Cut at every step that is taken inside, and at the end."""
        names = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")
        with self._disk.listening():
            steps = {name: getattr(os, name) for name in names}
            for name, step in steps.items():
                setattr(os, name, functools.partial(self._watched, name, step))
            try:
                yield
                self._cut("the last step")
            finally:
                for name, step in steps.items():
                    setattr(os, name, step)

    def _watched(self, name: str, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_cutting:
            return step(*args, **kwargs)
        if name == "fsync":
            self._cut(f"before {name}")
        self._is_cutting = True
        try:
            result = step(*args, **kwargs)
        finally:
            self._is_cutting = False
        self._cut(name)
        return result

    def _cut(self, where: str) -> None:
        self._is_cutting = True
        try:
            for mode in MODES:
                number = len(self.states)
                out = self._out / f"{number:04d}"
                self._disk.after_power_loss(out, mode, seed=number)
                self.states.append((out, self.acknowledged, f"{where}, {mode} ({out.name})"))
        finally:
            self._is_cutting = False


@contextlib.contextmanager
def unplugged() -> Iterator[None]:
    """Flush nothing for a while: what is looked at after a power cut need not outlast another one."""
    real = os.fsync
    os.fsync = lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = real


def _key(path: Path) -> str:
    """A name for an inode that no other inode ever gets."""
    with contextlib.suppress(OSError):
        return os.getxattr(path, _MARK).decode()
    key = uuid.uuid4().hex
    try:
        os.setxattr(path, _MARK, key.encode())
    except OSError:  # a file system without marks; the number is unique as long as this process lives
        return f"inode-{path.stat().st_ino}"
    return key
