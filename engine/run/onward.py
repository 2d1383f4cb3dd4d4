"""Another run from a finished one: with its student as the start, or with its records for a second student. No torch.

Both take over the settings that were given to the earlier run. Settings that are given now count more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import planner
from engine.errors import FolderError, Problem, SettingsError
from engine.planner import Plan
from engine.run.folder import Run
from engine.settings.command import resume_command
from engine.settings.config import OF_AN_ADAPTER, SETTINGS, RunConfig

START, RECORDS = "start_from", "records_from"
FROM_TEACHER = "from-teacher"
OF_THE_RECORDS = (
    *("teacher", "data", "text_field", "data_split", "samples", "sequence_length", "packing", "holdout", "seed"),
    *("record_size", "temperature", "precision", "quantization", "trust_remote_code", "allow_losses"),
)
"""Settings that records depend on: the rows, and the teacher's number format."""

_OF_THE_TEXT = ("data", "text_field", "data_split", "samples", "allow_losses")
_OF_THE_STUDENT = ("student", "student_layers", "student_width")
_OF_ONE_RUN = ("output_dir", "cache_dir", "until", "resume", "demo")


def expanded(config: RunConfig) -> RunConfig:
    """A request with ``start_from`` or ``records_from`` as a plain one; any other request as it is.

    Raises:
        FolderError: the folder holds no run, or its student is not finished.
        SettingsError: a setting contradicts one that was taken over.
    """
    earlier = config.start_from or config.records_from
    if earlier is None:
        return config
    run = Run.open(earlier)
    typed = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    typed = {name: value for name, value in typed.items() if name not in (START, RECORDS)}
    asked, settings = run.info.get("asked"), run.info["settings"]
    asked = asked if isinstance(asked, dict) else {}
    if config.start_from is None:
        return RunConfig.parse(second_student(run.path, settings, asked, typed))
    if not (run.student_path / "config.json").is_file():
        raise FolderError(
            f"The run in {run.path} has no student yet.",
            "The run is not finished.",
            f"Continue it: {resume_command(run.path)}",
        )
    return RunConfig.parse(from_the_student(run.path, settings, asked, typed))


def plan(config: RunConfig, **more: Any) -> Plan:
    """The plan of a request, also of one that begins with an earlier run: see :func:`engine.planner.plan`."""
    return planner.plan(expanded(config), **more)


def from_the_student(
    path: Path, settings: Mapping[str, Any], asked: Mapping[str, Any], typed: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a run that begins with another run's student.

    Args:
        path: of the earlier run.
        settings: all of its settings, as they were planned.
        asked: those that were given.
        typed: what is given now.
    """
    values = {name: value for name, value in asked.items() if name in SETTINGS and name not in _OF_ONE_RUN}
    values = {name: value for name, value in values.items() if name not in _OF_THE_STUDENT}
    if "data" in typed:  # the text's own settings belong to the old text
        values = {name: value for name, value in values.items() if name not in _OF_THE_TEXT}
        values["teacher"] = settings.get("teacher")
    else:
        values |= _of_the_records(settings)
    values["student"] = str(path / "student")
    if not any(name in typed for name in OF_THE_RECORDS):
        values["cache_dir"] = str(cache_of(path, settings))
    return _with(values, typed, settings)


def second_student(
    path: Path, settings: Mapping[str, Any], asked: Mapping[str, Any], typed: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a run that trains another student from a run's records; arguments as above.

    Raises:
        SettingsError: a setting was given that the records depend on.
    """
    fixed = [
        Problem(name, typed[name], f"the records of {path} were made with {settings.get(name)}; leave it out")
        for name in OF_THE_RECORDS
        if name in typed and name not in ("allow_losses", "trust_remote_code") and typed[name] != settings.get(name)
    ]
    if fixed:
        raise SettingsError(fixed, "For other records, start a run without --records_from.")
    values = {name: value for name, value in asked.items() if name in SETTINGS and name not in _OF_ONE_RUN}
    # Another student may have no linear layers of these names.
    values = {name: value for name, value in values.items() if name not in (*_OF_THE_STUDENT, "lora_targets")}
    values |= {**_of_the_records(settings), "student": FROM_TEACHER, "cache_dir": str(cache_of(path, settings))}
    return _with(values, typed, settings)


def cache_of(path: Path, settings: Mapping[str, Any]) -> Path:
    """The folder of a run's records."""
    shared = settings.get("cache_dir")
    return Path(shared) if isinstance(shared, str) and shared else path / "cache"


def _of_the_records(settings: Mapping[str, Any]) -> dict[str, Any]:
    fields = RunConfig.model_fields
    return {
        name: settings[name]
        for name in OF_THE_RECORDS
        if name in fields and settings.get(name) not in (None, fields[name].default)
    }


def _with(values: dict[str, Any], typed: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with what is given now; of the two that say how long to train, the given one.

    An adapter takes a higher learning rate than all weights, so a rate is not taken over from one to the other.
    """
    gone: tuple[str, ...] = ()
    if "steps" in typed or "epochs" in typed:
        gone += ("steps", "epochs")
    rank = typed.get("lora_rank")
    if rank == 0:
        gone += OF_AN_ADAPTER
    elif values.get("lora_rank") == 0 and any(name in typed for name in OF_AN_ADAPTER):
        gone += ("lora_rank",)  # these settings ask for an adapter
        rank = 1
    if rank:
        gone += ("student_sharded",)  # an adapter is not divided
    if rank is not None and bool(rank) != bool(settings.get("lora_rank")):
        gone += ("learning_rate",)
    return {**{name: value for name, value in values.items() if name not in gone}, **typed}
