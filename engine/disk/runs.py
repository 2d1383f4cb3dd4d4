"""Default folder of runs, and the list of active runs elsewhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from engine.disk import places


def default_runs_path() -> Path:
    """The folder of all runs: ``$TINYDISTILL_RUNS``, or the user's data folder."""
    named = os.environ.get("TINYDISTILL_RUNS")
    return Path(named).expanduser() if named else places.data() / "runs"


@contextlib.contextmanager
def announced(run: Path) -> Iterator[None]:
    """Let others find this run while it is going, wherever its folder is; a note that cannot be written is left out.

    Planning another run leaves it the memory of its plan. The note alone proves nothing: a run is going
    when its lock is held.
    """
    note = _notes_path() / blake2b(os.fsencode(run), digest_size=8).hexdigest()
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_bytes(os.fsencode(run))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink()


def announced_runs() -> list[Path]:
    """Folders of the runs that said they are going; those of killed supervisors are among them.

    Notes of runs whose folder is gone are removed.
    """
    found = []
    with contextlib.suppress(OSError):
        for note in sorted(_notes_path().iterdir()):
            with contextlib.suppress(OSError, ValueError):
                run = Path(os.fsdecode(note.read_bytes()))
                if run.is_dir():
                    found.append(run)
                else:
                    note.unlink()
    return found


def _notes_path() -> Path:
    return places.state() / "going"
