"""Runs: which there are, how each of them stands, and deleting one. No Textual.

A run's state comes from its lock and its last events, read from the end of the file; a stored "running" is never
believed. Runs in other places than the usual one are remembered when they are opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.channel.events import Event
from engine.channel.words import number
from engine.disk import places
from engine.disk.files import write_atomic
from engine.disk.runs import default_runs_path
from engine.errors import FolderError
from engine.format import format_count, format_duration, format_percent
from engine.model_files.on_disk import is_model
from engine.phase_kinds import phase_noun
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.view.state import RunState, run_state
from tinydistill_tui.view.watch import fold

_RECENT_BYTES = 256 * 2**10
_MOST_REMEMBERED = 200
_RUNS_FOR_MODELS, _MOST_MODELS = 10, 4
_SIZE_SECONDS = 30.0  # a folder's size is counted again after so long


@dataclass(frozen=True)
class RunSummary:
    """A run in one row.

    Attributes:
        where: how far it is, a few words.
        gap_closed: from the report, where there is one.
        created: Unix seconds.
        info: the content of ``run.json``; empty when it cannot be read.
        recent: the view of the newest events; not of all.
    """

    path: Path
    name: str
    state: RunState
    where: str
    gap_closed: float | None
    created: float
    size_bytes: int
    info: dict[str, Any]
    recent: RunView


def find() -> list[Path]:
    """Every run that is known, the newest first."""
    folders = set(_remembered())
    with contextlib.suppress(OSError):
        folders |= {path for path in default_runs_path().absolute().iterdir() if (path / "run.json").is_file()}
    dated = []
    for folder in folders:
        with contextlib.suppress(OSError):
            dated.append(((folder / "run.json").stat().st_mtime, folder))
    return [folder for _, folder in sorted(dated, reverse=True)]


def remember(path: Path) -> None:
    """Find this run again next time, wherever it is; a list that cannot be written is no reason to stop."""
    path = path.expanduser().absolute()
    if path.parent == default_runs_path().absolute():
        return
    known = [path, *(other for other in _remembered() if other != path)][:_MOST_REMEMBERED]
    with contextlib.suppress(OSError):
        _list_path().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_list_path(), "".join(f"{folder}\n" for folder in known))


def recent_models() -> list[str]:
    """Models that the newest runs were asked for and that are still there, the newest first."""
    names: list[str] = []
    for path in find()[:_RUNS_FOR_MODELS]:
        asked = read_info(path).get("asked")
        for role in ("teacher", "student"):
            name = asked.get(role) if isinstance(asked, dict) else None
            if isinstance(name, str) and name not in names and is_model(Path(name)):
                names.append(name)
    return names[:_MOST_MODELS]


def read_info(path: Path) -> dict[str, Any]:
    """The content of ``run.json``; empty when it is missing or cannot be read."""
    return read_json(path / "run.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_live(path: Path) -> bool:
    """Whether a supervisor holds the run."""
    from engine.run.folder import Run

    return Run(path, {}).is_live()


def summary(path: Path, now: float) -> RunSummary:
    """How a run stands, from its folder; ``now`` in Unix seconds."""
    info = read_info(path)
    view = fold(RunView(name=path.name), _recent_events(path / "events.jsonl"))
    created = number(info.get("created")) or 0.0
    state = run_state(view, live=is_live(path), now=now, created=created)
    report = read_json(path / "report.json") if state.word == "done" else {}
    return RunSummary(
        path=path,
        name=path.name,
        state=state,
        where=_where(view, state, report, now),
        gap_closed=number(report.get("gap_closed")),
        created=created,
        size_bytes=folder_bytes(path),
        info=info,
        recent=view,
    )


class RunList:
    """Summaries of all runs; what has not changed is not read again."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[Any, ...], float, RunSummary]] = {}

    def refresh(self, now: float) -> list[RunSummary]:
        """The runs as they are now, newest first."""
        summaries = []
        for path in find():
            stamp = (
                _stamp(path / "events.jsonl"),
                _stamp(path / "run.json"),
                _stamp(path / "report.json"),
                is_live(path),
            )
            old = self._known.get(path)
            if old is None or old[0] != stamp:
                entry = (stamp, now, summary(path, now))
            else:
                entry = (stamp, old[1], self._later(old[2], now, live=stamp[3], recount=now - old[1] > _SIZE_SECONDS))
                if now - old[1] > _SIZE_SECONDS:
                    entry = (stamp, now, entry[2])
            self._known[path] = entry
            summaries.append(entry[2])
        for path in self._known.keys() - {each.path for each in summaries}:
            del self._known[path]
        return sorted(summaries, key=lambda each: (not each.state.live, -each.created))

    @staticmethod
    def _later(old: RunSummary, now: float, *, live: bool, recount: bool) -> RunSummary:
        state = run_state(old.recent, live=live, now=now, created=old.created)
        size = folder_bytes(old.path) if recount else old.size_bytes
        # A finished run's words come from its report, which has not changed.
        where = old.where if state.word == old.state.word == "done" else _where(old.recent, state, {}, now)
        return replace(old, state=state, size_bytes=size, where=where)


def folder_bytes(path: Path) -> int:
    """Return a folder's bytes on disk, without link targets."""
    total = 0
    pending = [str(path)]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total


def delete(path: Path) -> None:
    """Delete a run and everything in its folder.

    Raises:
        FolderError: it is going, it is no run, or not everything could be deleted.
    """
    from engine.run.folder import Run

    run = Run.open(path) if read_info(path) else Run(path, {})
    if path.is_symlink() or not run.run_json.is_file():
        raise FolderError(f"{path} holds no run.", "Only a run's folder is deleted.", "Delete it by hand.")
    try:
        if run.is_live():
            raise FolderError(f"{path.name} is running: it is not deleted.", "", "Stop it first (S on its screen).")
        with run.lock():
            shutil.rmtree(path)
    except OSError as error:
        raise FolderError(
            f"Not everything in {path} could be deleted ({error.strerror or error}).", "", "Delete it by hand."
        ) from error


def _where(view: RunView, state: RunState, report: dict[str, Any], now: float) -> str:
    if state.word == "done":
        phases = report.get("phases")
        spans = (
            [number(p.get("seconds")) or 0.0 for p in phases.values() if isinstance(p, dict)]
            if isinstance(phases, dict)
            else []
        )
        return f"in {format_duration(sum(spans))}" if sum(spans) else ""
    if state.word == "lost":
        return f"no event for {format_duration(now - view.last_time)}" if view.last_time else "never began"
    if state.word == "failed" and view.failure is not None:
        return view.failure.what
    phase = view.current
    if phase is None:
        return ""
    place = ""
    if phase.name == "student" and view.step is not None:
        place = format_count(view.step) + (f"/{format_count(view.total_steps)}" if view.total_steps else "")
    elif phase.share is not None:
        place = format_percent(phase.share)
    if not state.live:
        return f"{'step' if phase.name == 'student' else phase_noun(phase.name)} {place}" if place else ""
    return place + (f", {format_duration(phase.eta_seconds)} left" if phase.eta_seconds is not None else "")


def _recent_events(path: Path) -> list[Event]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _RECENT_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    if size > _RECENT_BYTES:
        del lines[0]  # begins in the middle of a line
    events = []
    for line in lines[:-1]:
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("kind"), str):
                events.append(event)
    return events


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _remembered() -> list[Path]:
    try:
        lines = _list_path().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [Path(line) for line in lines if line.startswith("/") and (Path(line) / "run.json").is_file()]


def _list_path() -> Path:
    return places.state() / "runs.txt"
