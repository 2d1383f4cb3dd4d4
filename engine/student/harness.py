"""Tasks of lm-evaluation-harness, by name or from a task's YAML file. It comes with the extra ``eval``.

A name is a task that the installed package has; its data set is read from the local cache or downloaded. A file is read
here and never runs code: it names its data by ``dataset_path: json`` (or ``csv``, ``parquet``, ``text``) and
``data_files``, which may be relative to the current folder or to the file's own.

Source: Gao et al., A framework for few-shot language model evaluation, https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from engine.errors import DataError, Problem, SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INSTALL = "pip install lm-eval"
_SURE = 1.96  # standard errors on each side of a 95 % interval
_FILES = (".yaml", ".yml")
_SHARES = ("acc", "acc_norm", "exact_match", "f1")  # metrics between 0 and 1


@dataclass(frozen=True)
class TaskScore:
    """Result of a model in a task.

    Attributes:
        questions: that were asked.
        figures: by metric, the mean and its 95 % interval from the harness's standard error; the mean alone thrice
            where the harness gives none.
    """

    questions: int
    figures: dict[str, list[float]] = field(default_factory=dict)


def is_file(task: str) -> bool:
    """Return whether a task is given as a file, by its name's end."""
    return task.lower().endswith(_FILES)


def check(tasks: Sequence[str]) -> list[Problem]:
    """Return the problems of the tasks that show without loading a model."""
    if not tasks:
        return []
    if importlib.util.find_spec("lm_eval") is None:
        return [Problem("tasks", task, f"tasks of lm-eval need its package; install it: {INSTALL}") for task in tasks]
    problems = []
    for task in tasks:
        if not is_file(task):
            continue
        try:
            read_task(Path(task))
        except DataError as error:
            problems.append(Problem("tasks", task, " ".join(part for part in (error.what, error.why) if part)))
    return problems


def read_task(path: Path) -> dict[str, Any]:
    """Read a task's file with the files that it includes.

    Raises:
        DataError: it cannot be read, is no task, or would run code.
    """
    found = _read(path.expanduser(), ())
    name = found.get("task")
    if not isinstance(name, str) or not name:
        raise DataError(f"{path} is not a task of lm-eval.", "It has no name under `task:`.", "Name one task's file.")
    arguments = found.get("dataset_kwargs")
    if isinstance(arguments, dict) and "data_files" in arguments:
        beside = path.expanduser().resolve().parent
        found["dataset_kwargs"] = {**arguments, "data_files": _found_files(arguments["data_files"], beside)}
    return found


def ask(
    model: PreTrainedModel, tokenizer: object, tasks: Sequence[str], *, most_questions: int, batch: int = 4
) -> dict[str, TaskScore]:
    """Ask a model the tasks.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        tasks: names and files.
        most_questions: of each task; the first ones are asked.
        batch: rows at a time.

    Raises:
        SettingsError: lm-eval has no task of a name.
        DataError: a task's data cannot be read.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = [task for task in tasks if not is_file(task)]
    with _quiet():
        manager = TaskManager(include_defaults=bool(names))
        unknown = [name for name in names if not manager.match_tasks([name])]
        if unknown:
            raise SettingsError([Problem("tasks", name, "lm-eval has no task of this name") for name in unknown], "")
        specs = [read_task(Path(task)) if is_file(task) else task for task in tasks]
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        scores: dict[str, TaskScore] = {}
        for task, spec in zip(tasks, specs, strict=True):
            try:
                found = lm_eval.simple_evaluate(
                    harness, tasks=[spec], task_manager=manager, limit=most_questions, log_samples=False,
                    bootstrap_iters=1_000,
                )  # fmt: skip
            except Exception as error:  # any error of a task's data and templates
                raise DataError(
                    f"lm-eval could not ask the task {task}: {_first_line(error)}",
                    "It reads a task's data on this machine or downloads it.",
                    "Check the task with lm_eval itself, or name another one.",
                ) from error
            scores |= _scores(found)
    return scores


def _scores(found: Mapping[str, Any]) -> dict[str, TaskScore]:
    asked = found.get("n-samples", {})
    return {
        name: TaskScore(int(asked.get(name, {}).get("effective", 0)), _figures(values))
        for name, values in found["results"].items()
    }


def _figures(values: Mapping[str, Any]) -> dict[str, list[float]]:
    """The metrics of one task. Their keys are ``metric,filter``; ``none`` is the filter that changes nothing."""
    figures = {}
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{chosen}")
        away = _SURE * float(error) if isinstance(error, int | float) else 0.0
        name = metric if chosen == "none" else f"{metric} ({chosen})"
        low, high = float(value) - away, float(value) + away
        figures[name] = [float(value), *((max(0.0, low), min(1.0, high)) if metric in _SHARES else (low, high))]
    return figures


class _Loader(yaml.SafeLoader):
    """YAML as lm-eval writes it, without its functions."""


def _no_function(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise DataError(
        "The task's file would run Python code (!function).",
        "Code is run only of tasks that come with lm-eval.",
        "Ask such a task with lm_eval itself.",
    )


_Loader.add_constructor("!function", _no_function)


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        said = f"{path} cannot be read as a task of lm-eval: {_first_line(error)}"
        raise DataError(said, "", "Name a task's YAML file.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a task of lm-eval.", "It is no YAML mapping.", "Name a task's YAML file.")
    included = found.pop("include", None) or []
    merged: dict[str, Any] = {}
    for other in included if isinstance(included, list) else [included]:
        below = path.parent / str(other)
        if below.resolve() in (each.resolve() for each in (*above, path)):
            raise DataError(f"{path} includes itself.", "", "Fix its `include:`.")
        merged |= _read(below, (*above, path))
    return merged | found


def _found_files(files: Any, beside: Path) -> Any:
    """Paths of data, absolute where the file is beside the task's own and not in the current folder."""
    if isinstance(files, dict):
        return {split: _found_files(each, beside) for split, each in files.items()}
    if isinstance(files, list):
        return [_found_files(each, beside) for each in files]
    if isinstance(files, str) and not Path(files).exists() and (beside / files).exists():
        return str(beside / files)
    return files


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the harness's remarks on its own configuration out of the output."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
