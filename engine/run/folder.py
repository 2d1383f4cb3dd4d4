"""A run is a folder: its files, and what was asked and planned.

Everything about a run is in the folder; copy it and you have copied the run. This file knows where things are and how
to write them whole; it knows nothing of what the phases put there.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.channel.events import EventWriter
from engine.disk import file_lock
from engine.disk.files import make_folder, remove_leftovers, write_atomic
from engine.disk.named_path import named_path
from engine.errors import CorruptState, DiskFull, FolderError, FolderGone, Problem, SettingsError
from engine.jobs import Change, Job, backed_off, jobs_from_json, jobs_to_json, settings_in, with_values
from engine.machine import hardware
from engine.planner import Plan
from engine.run import old_runs
from engine.run.new_folder import check_new_folder, no_folder
from engine.run.run_lock import RunLock
from engine.run.sealed import SEAL, sealed, unsealed
from engine.settings.command import resume_command
from engine.settings.config import SETTINGS, RunConfig
from engine.version import __version__

FORMAT = 2
_LIBRARIES = ("torch", "transformers", "h5py", "safetensors", "tokenizers", "bitsandbytes", "numpy", "pydantic")


class Run:
    """One run's folder.

    Attributes:
        path: the folder, absolute.
        info: the content of ``run.json``.
        made_folder: whether this process made the folder, which was not there before.
    """

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        self.path = path
        self.info = info
        self.run_json = path / "run.json"
        self.events_path = path / "events.jsonl"
        self.log_path = path / "run.log"
        self.control_path = path / "control"
        self.lock_path = path / "lock"
        self.tokens_path = path / "tokens.h5"
        self.checkpoints_path = path / "checkpoints"
        self.phases_path = path / "phases"
        self.initial_student_path = path / "initial-student"
        self.student_path = path / "student"
        self.report_json = path / "report.json"
        self.report_md = path / "report.md"
        self.next_txt = path / "next.txt"
        self.pictures_path = path / "pictures"
        self.made_folder = False
        self._lock = RunLock(self.lock_path)

    @classmethod
    def create(cls, path: Path, config: RunConfig, plan: Plan) -> Run:
        """Make the folder of a new run and write ``run.json``.

        Raises:
            FolderError: the folder holds something else, or another run, or cannot be written.
        """
        path = path.expanduser().absolute()
        check_new_folder(path)
        info = {
            "format": FORMAT,
            "name": path.name,
            "folder": str(path),
            "created": time.time(),
            "version": __version__,
            "asked": config.asked(),
            "settings": _plain(plan.settings),
            **plan_fields(plan),
            "jobs": jobs_to_json(plan.jobs),
            "versions": versions(),
            "hardware": asdict(hardware.detect(path)),
        }
        run = cls(path, info)
        run.made_folder = not path.exists()
        try:
            make_folder(path)
            remove_leftovers(path)
            run.save()
        except DiskFull:
            run.discard()
            raise
        except OSError as error:
            run.discard()
            raise no_folder(path, error) from error
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open the folder of a run that exists.

        Raises:
            FolderError: there is no run in the folder.
            CorruptState: ``run.json`` cannot be read.
        """
        path = named_path(path).absolute()
        try:
            info = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise FolderError(
                f"There is no run in {path}.",
                "A run's folder holds a run.json.",
                "Name the folder of a run; a new run is started without --resume.",
            ) from None
        except (ValueError, RecursionError) as error:
            raise CorruptState(
                f"{path / 'run.json'} cannot be read ({error}).",
                "It holds the settings and the state of the run.",
                "Put back a copy of it, or start a new run; the teacher's records can be shared through --cache_dir.",
            ) from error
        by_hand = isinstance(info, dict) and SEAL not in info
        if isinstance(info, dict) and unsealed(info) is None:
            raise CorruptState(
                f"{path / 'run.json'} is not what was written: its checksum does not match.",
                "It holds the settings and the state of the run.",
                "Put back a copy of it, or start a new run; if you changed it yourself, take out its last entry, "
                "the checksum.",
            )
        formats = (old_runs.FORMAT, FORMAT)
        if (
            not isinstance(info, dict)
            or info.get("format") not in formats
            or not isinstance(info.get("settings"), dict)
        ):
            raise _of_another_version(path)
        run = cls(path, _for_readers(info))
        if by_hand:  # its settings may have been changed
            if not run.is_old:
                _check_changed(path, info["settings"])
            run._set(info["settings"])
        return run

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def settings(self) -> RunConfig:
        """Every setting of the run, resolved."""
        return RunConfig.model_validate(self.info["settings"])

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs of the run, in order; those of an earlier version's run are made from its settings.

        Raises:
            CorruptState: they cannot be read.
        """
        try:
            return old_runs.jobs_of_old_run(self.info) if self.is_old else jobs_from_json(self.info["jobs"])
        except ValueError as error:
            raise _of_another_version(self.path) from error
        except SettingsError as error:
            raise _of_another_version(self.path, error) from error

    @property
    def is_old(self) -> bool:
        """Whether an earlier version has written ``run.json``; :meth:`save` writes it as this version does."""
        return "jobs" not in self.info

    def job(self, name: str) -> Job:
        """The job of a name.

        Raises:
            CorruptState: the run has none of this name.
        """
        found = next((job for job in self.jobs if job.name == name), None)
        if found is None:
            raise _of_another_version(self.path)
        return found

    @property
    def cache_path(self) -> Path:
        """The folder of the teacher's records: in the run's folder, or the shared one."""
        shared = self.settings.cache_dir
        return Path(shared).expanduser() if shared else self.path / "cache"

    def result(self, phase: str) -> dict[str, Any] | None:
        """Return the result of a finished phase, or None. The result file marks a phase as finished."""
        try:
            found = json.loads((self.phases_path / f"{phase}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return unsealed(found)

    def steps_done(self) -> int:
        """Optimizer steps that the student has behind it, by its newest checkpoint or its result."""
        found = [int((self.result("student") or {}).get("steps") or 0)]
        for folder in self.checkpoints_path.glob("step-*"):
            if folder.name.removeprefix("step-").isdecimal():
                found.append(int(folder.name.removeprefix("step-")))
        return max(found)

    def damaged_results(self, phases: Sequence[str]) -> list[Path]:
        """Results that are there and cannot be believed; their phases are done again."""
        files = [self.phases_path / f"{phase}.json" for phase in phases if self.result(phase) is None]
        return [file for file in files if file.exists()]

    def finish_phase(self, phase: str, result: dict[str, Any]) -> None:
        """Enter a phase's result, as the last thing the phase does."""
        make_folder(self.phases_path, parents=False)
        write_atomic(self.phases_path / f"{phase}.json", sealed(result))

    def reopen_phase(self, phase: str) -> None:
        """Take a phase's result back: something of what it left turned out to be damaged or too little."""
        (self.phases_path / f"{phase}.json").unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove a run in which nothing was done, so that the same request can be made again when it is corrected."""
        for folder in (self.phases_path, self.initial_student_path):
            shutil.rmtree(folder, ignore_errors=True)
        files = (self.run_json, self.events_path, self.log_path, self.control_path, self.lock_path, self.tokens_path,
                 file_lock.marker_of(self.lock_path))  # fmt: skip
        for file in files:
            with contextlib.suppress(OSError):
                file.unlink()
        if self.made_folder:
            with contextlib.suppress(OSError):  # something else is in it now
                self.path.rmdir()

    def save(self) -> None:
        """Write ``run.json`` whole; one of an earlier version becomes one of this version."""
        if self.is_old:
            self.info["jobs"] = jobs_to_json(self.jobs)
            self.info.pop("head_chunk_tokens", None)
        self.info["format"] = FORMAT
        write_atomic(self.run_json, sealed(self.info))

    def sweep(self) -> None:
        """Remove what killed writers have left half-written; the lock has to be held."""
        for folder in (self.path, self.phases_path, self.pictures_path, self.student_path):
            remove_leftovers(folder)

    def move(self, places: dict[str, Any]) -> None:
        """Enter the present places of inputs with the same content, and of the run itself."""
        if places or self.info.get("folder") not in (None, str(self.path)):
            self._set(places)
            self.info["asked"].update({name: value for name, value in places.items() if name in self.info["asked"]})
            self.info["folder"] = str(self.path)
            self.save()

    def change(self, values: dict[str, Any], *, instead: Callable[[list[str]], str] = lambda _names: "") -> None:
        """Take new values for settings that may change in a run that exists.

        Args:
            values: by name.
            instead: suggests another way for settings that may not change, given their names; empty if none.

        Raises:
            SettingsError: a value differs that would falsify what is already there.
        """
        settings = self.info["settings"]
        differing = {name: value for name, value in values.items() if settings.get(name) != value}
        problems = [
            Problem(name, value, f"this run has {settings.get(name)}, and its results were made with it")
            for name, value in differing.items()
            if not SETTINGS[name].may_change
        ]
        if problems:
            other = instead([problem.setting for problem in problems]) or "start a new one."
            raise SettingsError(problems, f"Leave these out to continue the run, or {other}")
        if differing:
            self._set(differing)
            asked = {**self.info["asked"], **differing}
            self.info["asked"] = {name: value for name, value in asked.items() if value is not None}
            self.save()

    def back_off(self, name: str, reason: str, changes: Sequence[Change]) -> None:
        """Replace a job that ran out of memory by a smaller one; see :meth:`replace_job`.

        Args:
            name: of the job.
            reason: in words.
            changes: of its values.
        """
        self.info.setdefault("backed_off", []).append({"phase": name, "reason": reason, "changes": changes})
        self.replace_job(name, changes)

    def replace_job(self, name: str, changes: Sequence[Change]) -> None:
        """Change values of a job and of those after it (:func:`engine.jobs.backed_off`), and write them down.

        The settings follow: readers see in them how the run is done.
        """
        self.info["jobs"] = jobs_to_json(backed_off(self.jobs, name, changes))
        self.info["settings"].update(settings_in(changes))
        self.save()

    def vanished(self) -> FolderGone | None:
        """Return the error for a folder that is not there any more, or of which only some files are; None where it is.

        ``run.json`` is looked for: ``rm -r`` may have taken it and not yet the folder, and the folder over which a disk
        was mounted is still there when it is unmounted.
        """
        try:
            self.run_json.stat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:  # a disk or a network that fails: the next read or write shows which
            return None
        else:
            return None
        return FolderGone(
            f"The run's folder {self.path} is gone.",
            "It was moved, deleted or unmounted while the run used it.",
            f"Put it back, then continue: {resume_command(self.path)}",
        )

    def _set(self, values: dict[str, Any]) -> None:
        self.info["settings"].update(values)
        if self.is_old:
            return
        try:
            self.info["jobs"] = jobs_to_json(with_values(self.jobs, values))
        except ValueError as error:
            raise _of_another_version(self.path) from error

    def event_writer(self, phase: str | None = None) -> EventWriter:
        """Return a writer to this run's events and log; on a full disk, the last events take the lock's room."""
        return EventWriter(self.events_path, phase=phase, log_path=self.log_path, make_room=self._lock.give_room)

    def lock(self) -> AbstractContextManager[int]:
        """Hold the run; see :meth:`engine.run.run_lock.RunLock.held`."""
        return self._lock.held()

    def is_live(self) -> bool:
        """Return whether a supervisor holds the run."""
        return self._lock.is_live()

    @property
    def without_locks(self) -> bool:
        """Whether the file system has no locks; a file says who holds the run."""
        return self._lock.without_locks


def _for_readers(info: dict[str, Any]) -> dict[str, Any]:
    """Return a run's information with what other versions lack and only readers need: reasons, predictions, dates."""
    empty = {"created": 0.0, "asked": {}, "choices": [], "predicted": {}, "versions": {}, "hardware": {}}
    return info | {name: value for name, value in empty.items() if not isinstance(info.get(name), type(value))}


def _of_another_version(path: Path, error: SettingsError | None = None) -> CorruptState:
    """Return the error for a ``run.json`` that cannot be used, with the settings that are to blame."""
    return CorruptState(
        f"{path / 'run.json'} is not of a kind that this version ({__version__}) reads.",
        "" if error is None else "; ".join(problem.sentence() for problem in error.problems) + ".",
        "Use the version that made the run.",
    )


def _check_changed(path: Path, settings: dict[str, Any]) -> None:
    """Check settings that were changed in run.json itself.

    Raises:
        CorruptState: some of them cannot be used.
    """
    try:
        RunConfig.model_validate(settings)
    except SettingsError as error:
        problems = "; ".join(problem.sentence() for problem in error.problems)
        raise CorruptState(
            f"The settings in {path / 'run.json'} cannot be used: {problems}.",
            "The file was changed.",
            'Correct them under "settings", or put back a copy of the file.',
        ) from error


def unwritable(path: Path, error: OSError) -> FolderError:
    """The error for a run whose folder cannot be used, in the words of the system."""
    return FolderError(
        f"The run in {path} cannot continue: {error.filename or path}: {error.strerror}.",
        "A run writes its events and results into its folder.",
        "Make the folder writable, then resume the run.",
    )


def plan_fields(plan: Plan) -> dict[str, Any]:
    """The plan as it stands in ``run.json`` and in the ``plan`` event: choices with reasons, and predictions."""
    phases = {
        name: {
            "peak_bytes": phase.peak_bytes,
            "ram_bytes": phase.ram_bytes,
            "seconds": phase.seconds,
            "seconds_error": phase.seconds_error,
            "parts": dict(phase.parts),
        }
        for name, phase in plan.predicted.items()
    }
    return {
        "choices": [
            {"field": c.field, "value": _json_value(c.value), "by": c.by, "reason": c.reason} for c in plan.choices
        ],
        "predicted": {
            **phases,
            "disk_bytes": plan.disk_bytes,
            "prepare_bytes": plan.prepare_bytes,
            "prepare_seconds": plan.prepare_seconds,
        },
    }


def versions() -> dict[str, str]:
    """Versions of this program, of Python and of the libraries whose numbers a result depends on; imports none."""
    found = {"tinydistill": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    return found


def _plain(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", by_alias=True)


def _json_value(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
