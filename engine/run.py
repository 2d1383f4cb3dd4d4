"""A run is a folder: its files, its lock, and what was asked and planned.

Everything about a run is in the folder; copy it and you have copied the run. This file knows where things lie and how
to write them whole; it knows nothing of what the phases put there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from engine import hardware
from engine.config import SETTINGS, RunConfig
from engine.errors import CorruptState, FolderError, Problem, SettingsError
from engine.files import write_atomic
from engine.planner import Plan
from engine.version import __version__

FORMAT = 1
_LIBRARIES = ("torch", "transformers", "h5py", "safetensors", "tokenizers", "bitsandbytes", "numpy", "pydantic")


class Run:
    """One run's folder.

    Attributes:
        path: the folder, absolute.
        info: the content of ``run.json``.
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

    @classmethod
    def create(cls, path: Path, config: RunConfig, plan: Plan) -> Run:
        """Make the folder of a new run and write ``run.json``.

        Raises:
            FolderError: the folder holds something else, or another run, or cannot be written.
        """
        path = path.expanduser().absolute()
        if path.exists():
            if not path.is_dir():
                raise FolderError(f"{path} is a file.", "A run is a folder.", "Choose another --output_dir.")
            if (path / "run.json").exists():
                raise FolderError(
                    f"{path} already holds a run.",
                    "Nothing of it is overwritten.",
                    f"Go on with it: tiny-distill --resume --output_dir {path}, or choose another --output_dir.",
                )
            if any(path.iterdir()):
                raise FolderError(
                    f"{path} is not empty and holds no run.",
                    "A run writes only into a folder of its own.",
                    "Choose an --output_dir that is empty or does not exist yet.",
                )
        info = {
            "format": FORMAT,
            "name": path.name,
            "created": time.time(),
            "version": __version__,
            "asked": config.asked(),
            "settings": _plain(plan.settings),
            **plan_fields(plan),
            "versions": versions(),
            "hardware": asdict(hardware.detect(path)),
        }
        run = cls(path, info)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.save()
        except PermissionError as error:
            raise FolderError(
                f"{path} cannot be written ({error.strerror}).", "", "Choose another --output_dir."
            ) from error
        except OSError as error:
            if error.errno == errno.EROFS:
                raise FolderError(
                    f"{path} is on a read-only file system.", "", "Choose another --output_dir."
                ) from error
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open the folder of a run that exists.

        Raises:
            FolderError: there is no run in the folder.
            CorruptState: ``run.json`` cannot be read.
        """
        path = path.expanduser().absolute()
        try:
            info = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise FolderError(
                f"There is no run in {path}.",
                "A run's folder holds a run.json.",
                "Give the --output_dir of a run, or start a new run without --resume.",
            ) from None
        except (ValueError, RecursionError) as error:
            raise CorruptState(
                f"{path / 'run.json'} cannot be read ({error}).",
                "It says what the run is.",
                "Put back a copy of it, or start a new run; the teacher's records can be shared through --cache_dir.",
            ) from error
        if not isinstance(info, dict) or info.get("format") != FORMAT or not isinstance(info.get("settings"), dict):
            raise CorruptState(
                f"{path / 'run.json'} is not of a kind that this version ({__version__}) reads.",
                "",
                "Use the version that made the run.",
            )
        return cls(path, info)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def settings(self) -> RunConfig:
        """Every setting of the run, resolved."""
        return RunConfig.model_validate(self.info["settings"])

    @property
    def cache_path(self) -> Path:
        """Where the teacher's records lie: in the run's folder, or in the shared one."""
        shared = self.settings.cache_dir
        return Path(shared).expanduser() if shared else self.path / "cache"

    def result(self, phase: str) -> dict[str, Any] | None:
        """What a finished phase left behind; None while it is not done. This file is what makes a phase done."""
        try:
            found = json.loads((self.phases_path / f"{phase}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def finish_phase(self, phase: str, result: dict[str, Any]) -> None:
        """Enter a phase's result, as the last thing the phase does."""
        self.phases_path.mkdir(exist_ok=True)
        write_atomic(self.phases_path / f"{phase}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")

    def reopen_phase(self, phase: str) -> None:
        """Take a phase's result back: something of what it left turned out to be damaged or too little."""
        (self.phases_path / f"{phase}.json").unlink(missing_ok=True)

    def save(self) -> None:
        """Write ``run.json`` whole."""
        write_atomic(self.run_json, json.dumps(self.info, indent=1, ensure_ascii=False, default=str) + "\n")

    def change(self, values: dict[str, Any]) -> None:
        """Take new values for settings that may change in a run that exists.

        Raises:
            SettingsError: a value differs that would falsify what is already there.
        """
        settings = self.info["settings"]
        differing = {name: value for name, value in values.items() if settings.get(name) != value}
        problems = [
            Problem(name, value, f"this run has {settings.get(name)}, and what is there was made with it")
            for name, value in differing.items()
            if not SETTINGS[name].may_change
        ]
        if problems:
            raise SettingsError(problems, "Leave these out to go on with the run, or start a new one.")
        if differing:
            settings.update(differing)
            asked = {**self.info["asked"], **differing}
            self.info["asked"] = {name: value for name, value in asked.items() if value is not None}
            self.save()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: one supervisor at a time. The lock goes with the process, however it ends.

        Raises:
            FolderError: another supervisor holds it.
        """
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderError(
                    f"The run in {self.path} is already going.",
                    "One process at a time works on a run.",
                    f"Watch it: tinydistill-tui --attach {self.path}",
                ) from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield
        finally:
            os.close(descriptor)

    def is_live(self) -> bool:
        """Whether a supervisor holds the run: its lock is tried, for pids are reused."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        else:
            return False
        finally:
            os.close(descriptor)


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
        "predicted": {**phases, "disk_bytes": plan.disk_bytes},
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
