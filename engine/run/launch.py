"""Start of a run: plan a request, create the run's folder, start its supervisor.

The command line, the wizard and Python programs use it. It knows nothing of torch and of screens.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.channel.events import Event, read_events
from engine.channel.last_word import LastWord
from engine.data.left_out import ASKS_FOR_LOSSES
from engine.data.survey import Survey
from engine.errors import Problem, RequestError, RunFailed, SettingsError, TinyDistillError
from engine.format import format_bytes
from engine.jobs import TrainJob, last_of
from engine.machine.hardware import Hardware, detect, usable_cores
from engine.model_files.hub import fetch_model
from engine.model_files.vocabulary import forget_vocabularies
from engine.planner import Plan, plan
from engine.planner.measure import MachineRates, machine_rates
from engine.planner.models import FROM_TEACHER, describe
from engine.planner.run_folder import folder_for
from engine.planner.sharding import check_sharding
from engine.planner.text import look
from engine.ranks import threads_each
from engine.run import supervisor
from engine.run.folder import Run
from engine.run.inputs import moved
from engine.run.onward import OF_THE_RECORDS, expanded
from engine.run.request import check_ranks, check_request, with_absolute_paths
from engine.settings import profiles
from engine.settings.command import command_words, how_to_continue, resume_command
from engine.settings.config import SETTINGS, RunConfig

_ALL_WAS_READ = 0.995
_STILL_FREE = 0.95  # of the memory that was free when the user saw the plan
_DIVIDES = ("processes", "student_sharded")


def config_from(values: dict[str, Any]) -> RunConfig:
    """A RunConfig from what was typed, on top of the profile, or of the earlier run, that it names.

    Raises:
        SettingsError: everything that is wrong, at once.
        FolderError: an earlier run is not there, or not finished.
    """
    named = values.get("profile")
    config = RunConfig.parse({**profiles.load(str(named)), **values} if named else values)
    if named:
        profiles.used(str(named), time.time())
    return expanded(config)


def new_run(config: RunConfig, seen: Hardware | None = None) -> Run:
    """Plan a run and create its folder, unless the request is invalid or does not fit.

    Args:
        config: the request.
        seen: the machine of the plan that the user saw. The run gets that plan's budget, unless other programs have
            taken a twentieth of the free memory since.

    Raises:
        RequestError: the request is wrong.
        DoesNotFit: no room, with the nearest setting that fits.
    """
    config = expanded(config)
    _require_models(config)
    config = with_absolute_paths(config)
    for model in (config.teacher, config.student):
        if model is not None and model != FROM_TEACHER:
            fetch_model(model)  # a folder or a model that is in the local cache costs no connection
    planned = checked_plan(config, hardware=None if seen is None else _as_seen(seen, config))
    check_losses(planned.settings)
    forget_vocabularies()
    output = planned.settings.output_dir
    assert output is not None, "the planner resolves every setting"
    return Run.create(output, config, planned)


def _as_seen(seen: Hardware, config: RunConfig) -> Hardware:
    now = detect(folder_for(config)[0])
    before, after = ([each.available_bytes, *(gpu.free_bytes for gpu in each.gpus)] for each in (seen, now))
    if len(before) != len(after) or any(left < _STILL_FREE * free for free, left in zip(before, after, strict=True)):
        return now
    return replace(now, available_bytes=seen.available_bytes, gpus=seen.gpus)


def checked_plan(config: RunConfig, *, strict: bool = True, hardware: Hardware | None = None) -> Plan:
    """The plan of a request that can be met; what is wrong is said before the machine is measured (seconds).

    Raises:
        RequestError: the request is wrong.
        DoesNotFit: no room; with ``strict`` off it is in the plan instead.
    """
    settings = plan(config, hardware=hardware, strict=False).settings
    check_request(settings)
    return plan(config, hardware=hardware, machine=measured_rates(settings), strict=strict)


def measured_rates(settings: RunConfig) -> MachineRates:
    """Measure the machine (seconds, once), on the device and with the threads of planned settings."""
    threads = threads_each(settings.threads or usable_cores(), settings.processes)
    return machine_rates(measure=True, device=settings.device or "cpu", threads=threads)


def look_at_text(settings: RunConfig) -> Survey | None:
    """Return a quick survey of the text, for the documents left out; None if the text is not in files.

    Raises:
        DataError: there is no text, or none that can be used.
    """
    found = look(settings.data, settings) if settings.data is not None else None
    return found if found is not None and found.files else None


def check_losses(settings: RunConfig) -> None:
    """Refuse a run that would leave out more than half of its text. If the survey read only a part, the run checks it.

    Raises:
        MostlyLeftOut: and --allow_losses was not given.
    """
    found = look_at_text(settings)
    lost = found.left_out if found is not None else None
    if lost is not None and lost.is_most and lost.share_looked_at > _ALL_WAS_READ and not settings.allow_losses:
        raise lost.error()


def resume_run(config: RunConfig) -> Run:
    """Open the run of ``output_dir`` and take over the settings that may change.

    Raises:
        FolderError: there is no run, or it is going.
        SettingsError: a setting that was given differs from the run's and may not.
        RequestError: variables of the environment make this process one of several, and the run is none.
    """
    assert config.output_dir is not None, "RunConfig.contradictions asks for it"
    run = Run.open(config.output_dir)
    config = with_absolute_paths(config)
    given = {
        name: value
        for name, value in config.asked().items()
        if name != "output_dir" and SETTINGS[name].group != "command"
    }
    more_training = any(
        name in given and given[name] != run.info["settings"].get(name) for name in ("epochs", "steps", "compare")
    )
    if "epochs" in given:  # one of the two says when to stop
        given["steps"] = None
    elif "steps" in given:
        given["epochs"] = None
    # A running run already uses its settings; in a folder that is not writable, no run can be active.
    _refuse_fewer_steps(run, given)
    _refuse_too_many_processes(run, given)
    _refuse_to_divide(run, given)
    check_ranks(run.settings.model_copy(update={"until": config.until, "processes": config.processes}))
    with run.lock() if os.access(run.path, os.W_OK) else contextlib.nullcontext():
        run.info = Run.open(run.path).info
        found = moved(run, given)
        run.move(found)
        given = {name: value for name, value in given.items() if name not in found}
        run.change({**given, "until": config.until}, instead=lambda names: _from_its_records(run, given, names))
        if more_training:
            run.reopen_phase("student")
        if "share" in (run.result("teacher") or {}):  # other ranks may have scored their shares meanwhile
            run.reopen_phase("teacher")
    return run


def _from_its_records(run: Run, given: Mapping[str, Any], names: Sequence[str]) -> str:
    """The command that trains a student with other settings from the run's records; empty where they are others'."""
    if run.result("teacher") is None or any(name in OF_THE_RECORDS for name in names):
        return ""
    student = run.info["settings"].get("student")
    own = {} if student in (None, FROM_TEACHER) else {"student": student}
    program, *flags = command_words(RunConfig.parse({**own, **{name: given[name] for name in names}}))
    line = shlex.join([program, "--records_from", str(run.path), *flags])
    return f"train such a student from its records: {line}"


def _refuse_fewer_steps(run: Run, given: dict[str, Any]) -> None:
    """A training cannot continue to an earlier step.

    Raises:
        SettingsError: with how many steps are done.
    """
    done = run.steps_done()
    training = last_of(run.jobs, TrainJob)
    in_a_step = training.student_batch * training.gradient_accumulation
    rows = ((run.result("prepare") or {}).get("data") or {}).get("train_rows")
    for name in ("steps", "epochs"):
        value = given.get(name)
        if value is None:
            continue
        steps = value if name == "steps" else None if rows is None else math.ceil(value * rows / in_a_step)
        if steps is not None and steps < done:
            which = "" if name == "steps" else f", and {value} epochs are {steps:,}"
            raise SettingsError(
                [Problem(name, value, f"{done:,} steps are done already{which}; give no fewer")],
                "To have a student of fewer steps, start a new run; with --cache_dir it takes the teacher's records.",
            )


def _refuse_too_many_processes(run: Run, given: dict[str, Any]) -> None:
    """More processes than the run was planned with need more memory: it must be in the budget.

    Raises:
        SettingsError: with what they need and what there is.
    """
    before = last_of(run.jobs, TrainJob)
    training = before.changed(given)
    count, planned, budget = training.processes, before.processes, training.memory_budget
    peaks = [phase["peak_bytes"] for phase in run.info["predicted"].values() if isinstance(phase, dict)]
    if count <= planned or not peaks:
        return
    needed = max(peaks) // planned * count
    if training.student_sharded and before.student_sharded:
        # The ranks divide the student: more of them need little more in all. Each has the whole teacher.
        of_all = {name: phase["peak_bytes"] for name, phase in run.info["predicted"].items() if isinstance(phase, dict)}
        needed = max(of_all.get("student", 0), of_all.get("teacher", 0) // planned * count)
    if needed > budget:
        each = f"each needs some {format_bytes(needed // count)}, and the run's memory budget is {format_bytes(budget)}"
        raise SettingsError(
            [Problem("processes", count, each)],
            f"Use at most {max(1, budget // (needed // count))}, or add --memory_budget {needed // 10**6 + 1}MB.",
        )


def _refuse_to_divide(run: Run, given: dict[str, Any]) -> None:
    """A student that cannot be divided among processes when a run is planned cannot be divided later either.

    Raises:
        SettingsError: with the reason.
    """
    settings = run.settings.model_copy(update={name: given[name] for name in _DIVIDES if name in given})
    if problems := [problem for problem in settings.contradictions() if problem.setting == "student_sharded"]:
        raise SettingsError(problems)
    if not (settings.student_sharded and settings.processes > 1 and any(name in given for name in _DIVIDES)):
        return
    # The head of a cut student is its teacher's.
    model = settings.teacher if settings.student == FROM_TEACHER else settings.student
    try:
        shape = describe(str(model), settings.trust_remote_code)
    except TinyDistillError:  # it was moved; the phase says so
        return
    check_sharding(settings, shape)


def is_finished(run: Run) -> bool:
    """Return whether everything that the run was asked for is done."""
    last = run.settings.until or "student"
    return run.result(last) is not None and (last != "student" or run.report_json.exists())


def distill(config: RunConfig) -> dict[str, Any]:
    """Do the whole run, in processes of its own, and return its report.

    Raises:
        TinyDistillError: as on the command line, with what, why and todo.
    """
    run = resume_run(config) if config.resume else new_run(config)
    if not is_finished(run):
        word = LastWord()
        code = supervisor.start(run.path, tied=True, last_word=word).wait()
        said = word.said()
        if code != 0:
            raise ended(run, code, said)
    if not run.report_json.exists():
        return {}
    report: dict[str, Any] = json.loads(run.report_json.read_text(encoding="utf-8"))
    return report


def ended(run: Run, code: int, said: Mapping[str, Any] | None = None) -> TinyDistillError:
    """The error that ended a run; a run whose request was wrong, and in which nothing was done, is removed."""
    error = failure(run, code, said)
    if code == RequestError.exit_code and run.result("prepare") is None:
        run.discard()
    return error


def asks_for_losses(run: Run) -> bool:
    """Return whether a run ended because more than half of its text would have been left out."""
    codes = [event.get("code") for event in read_events(run.events_path) if event["kind"] in ("log", "run_resumed")]
    return run.result("prepare") is None and codes[-1:] == [ASKS_FOR_LOSSES]


def failure(run: Run, code: int, said: Mapping[str, Any] | None = None) -> TinyDistillError:
    """The error that ended a run.

    Args:
        run: the run.
        code: of its supervisor.
        said: its last message, if the caller listened; else the last ``error`` event is used.
    """
    last = said or _last_error(run)
    if code == 130:
        error: TinyDistillError = TinyDistillError("The run was stopped.", "", f"Continue: {resume_command(run.path)}")
    elif last:
        error = RunFailed(
            last.get("what", ""), last.get("why", ""), _with_command(run, code, str(last.get("todo", "")))
        )
    else:
        error = _ended_without_a_word(run, code)
    error.exit_code = code  # type: ignore[misc]
    return error


def _with_command(run: Run, code: int, todo: str) -> str:
    """Return the advice, with the command to continue if the state was kept."""
    if code != RunFailed.exit_code or "--resume" in todo:
        return todo
    todo = todo.removesuffix(", then resume the run.").removesuffix(" and resume the run.").removesuffix(".")
    command = f"Continue: {resume_command(run.path)}"
    return f"{todo}. {command}" if todo else command


def _last_error(run: Run) -> Event | None:
    """The last ``error`` event since the run was last begun."""
    for event in reversed(list(read_events(run.events_path))):
        if event["kind"] == "error":
            return event
        if event["kind"] in ("run_started", "run_resumed"):
            break
    return None


def _ended_without_a_word(run: Run, code: int) -> RunFailed:
    """Describe a supervisor that was killed or could not start: how it ended, and the end of its log."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    try:
        lines = run.log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    why = "It could write nothing into its folder."
    if lines:
        why = f"The last line of its run.log: {lines[-1][-300:].removesuffix('.')}."
    return RunFailed(f"The run in {run.path} {how}.", why, how_to_continue(run.path))


def _require_models(config: RunConfig) -> None:
    if config.demo or config.use_recommended:
        return
    missing = [
        Problem(name, "", f"required; {SETTINGS[name].help[0].lower()}{SETTINGS[name].help[1:]}")
        for name in ("teacher", "student")
        if getattr(config, name) is None
    ]
    if missing:
        raise SettingsError(
            missing, "Or let the planner choose: --use_recommended; or try the demo: --demo. All settings: --help."
        )


def open_run(path: str | Path) -> Run:
    """Open the folder of a run: its settings, its files, its state.

    Raises:
        FolderError: there is no run.
    """
    return Run.open(Path(path))
