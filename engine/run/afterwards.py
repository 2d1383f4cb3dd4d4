"""Next steps after a finished run, each with its command. No torch.

The wizard shows this list, the command line prints it, and the run's folder has it as ``next.txt``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import TinyDistillError
from engine.format import format_bytes, format_count, format_rate
from engine.model_files.spec import ModelSpec, read_spec
from engine.run.onward import cache_of, from_the_student, second_student
from engine.settings.config import RunConfig
from engine.settings.describe import layer_count
from engine.student.verdict import headline, why_worse
from engine.talk.speed import speeds

FILE = "next.txt"
# The prompt has its line ends, which a chat template needs, as two characters each: the command is one line.
_LOAD_AND_PRINT = (
    "import sys; from transformers import pipeline; "
    r'prompt = sys.argv[2].replace(r"\n", "\n"); '
    'print(pipeline("text-generation", sys.argv[1])(prompt, max_new_tokens=60)[0]["generated_text"])'
)
FIRST_WORDS = "Once upon a time"
_NEXT_RATE = 0.3  # of the learning rate, for a student that has learned already
_LOWER_RATE = 0.1  # of the learning rate, for a student that got worse
_SOME_LABELS = 0.5  # of the loss, where the teacher is worse on this text than the student was


@dataclass(frozen=True)
class NextStep:
    """One next step.

    Attributes:
        key: ``again``, ``talk``, ``beside``, ``transformers``, ``gguf``, ``ollama``, ``longer``, ``onward``,
            ``another``, ``cache`` or ``folder``.
        title: what it does.
        words: the command, word by word.
        then: what is typed after it, in the same line; empty where the command does it all.
        values: settings of another run, where the command starts one.
    """

    key: str
    title: str
    words: tuple[str, ...]
    then: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The command as it runs in a shell."""
        return shlex.join(self.words) + (f" && {self.then}" if self.then else "")


def next_steps(report: Mapping[str, Any], path: Path) -> list[NextStep]:
    """Return the next steps, the most likely first; each line is a complete command.

    A student that got worse is trained again in another way; it is no start for more training.

    Args:
        report: the run's report.
        path: the run's folder.
    """
    config = _part(report, "config")
    run, student = str(path), str(path / "student")
    name = _tag(path.name)
    modelfile = shlex.quote(str(path / "ollama" / "Modelfile"))
    asked, worse = _asked(report), _why_worse(report)
    return [
        *(_again(config, asked, path, worse) if worse else []),
        NextStep("talk", "Talk to the student", ("tiny-distill-chat", run)),
        NextStep("beside", "Talk to it beside its teacher", ("tiny-distill-chat", run, "--beside", "teacher")),
        NextStep(
            "transformers",
            "Use it in Python (transformers)",
            ("python", "-c", _LOAD_AND_PRINT, student, _prompt(report)),
        ),
        NextStep("gguf", "Write it for llama.cpp (GGUF)", ("tiny-distill-export", run, "--format", "gguf")),
        NextStep(
            "ollama",
            "Write it for Ollama",
            ("tiny-distill-export", run, "--format", "ollama"),
            f"ollama create {name} -f {modelfile} && ollama run {name}",
        ),
        *([] if worse else [_longer(config, run), *_start_from(config, asked, path)]),
        *_another_student(config, asked, path),
        NextStep("cache", "Inspect the records", ("tiny-distill-cache", "inspect", str(cache_of(path, config)))),
        NextStep("folder", "Open the run's folder", ("cd", run)),
    ]


def about_the_student(report: Mapping[str, Any], path: Path) -> list[str]:
    """Where the student is, and how large it is beside its teacher; lines for a user."""
    config = _part(report, "config")
    trusted = bool(config.get("trust_remote_code"))
    student = _spec(path / "student", trusted)
    teacher = _spec(config.get("teacher"), trusted)
    lines = [f"The student: {path / 'student'}"]
    if student is not None:
        beside = ("", "")
        if teacher is not None:
            beside = f" (its teacher {format_count(teacher.num_parameters)})", f" ({format_bytes(teacher.file_bytes)})"
        layers = "1 layer" if student.num_layers == 1 else f"{student.num_layers} layers"
        lines.append(
            f"{format_count(student.num_parameters)} parameters{beside[0]}, {layers}, "
            f"{format_bytes(student.file_bytes)}{beside[1]}, {student.dtype}"
        )
    if told := _speed_in_words(speeds(path)):
        lines.append(told)
    return lines


def _speed_in_words(rates: Mapping[str, float]) -> str:
    """How fast the student wrote beside its teacher; empty where it was not measured.

    Each was measured at another moment, perhaps while other programs were busy, so that no quotient is given.
    """
    student, teacher = rates.get("after"), rates.get("teacher")
    if student is None:
        return ""
    if teacher is None:
        return f"It wrote {format_rate(student, 'tokens')} last time; other programs slow it"
    beside = format_rate(teacher, "tokens").removesuffix(" tokens/s")
    return f"It wrote {format_rate(student, 'tokens')} (its teacher {beside}) last time; other programs slow both"


def in_words(report: Mapping[str, Any], path: Path) -> str:
    """The content of ``next.txt``."""
    lines = [headline(report), "", *about_the_student(report, path), ""]
    for step in next_steps(report, path):
        lines += [f"{step.title}:", f"    {step.line}", ""]
    return "\n".join(lines)


def _longer(config: Mapping[str, Any], run: str) -> NextStep:
    """The same run with twice the steps."""
    steps, epochs = _number(config.get("steps")), _number(config.get("epochs")) or 1
    more, times = ("steps", int(2 * steps)) if steps else ("epochs", int(2 * epochs))
    return NextStep(
        "longer",
        f"Train it longer, to {times:,} {more}",
        ("tiny-distill", "--resume", "--output_dir", run, f"--{more}", str(times)),
        values={"resume": True, "output_dir": run, more: times},
    )


def _again(config: Mapping[str, Any], asked: Mapping[str, Any], path: Path, worse: str) -> list[NextStep]:
    """The same student from the same records, trained in the way that the verdict advises."""
    rate = _number(config.get("learning_rate"))
    if worse == "same" or (worse == "steps" and rate is None):
        return []
    title, changed = "Train it again from the same records, with labels mixed in", {"kd_weight": _SOME_LABELS}
    if worse == "steps" and rate is not None:
        title = "Train it again from the same records, with a lower learning rate"
        changed = {"learning_rate": float(f"{rate * _LOWER_RATE:.1e}")}
    names = ("student", "student_layers", "lora_targets")
    same = {name: config[name] for name in names if config.get(name) is not None}
    if config.get("student_width") not in (None, 1, 1.0):
        same["student_width"] = config["student_width"]
    return _from_the_records("again", title, {**same, **changed}, config, asked, path)


def _start_from(config: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> list[NextStep]:
    """Another run that begins with this student, a little more slowly."""
    rate = _number(config.get("learning_rate"))
    given = {} if rate is None else {"learning_rate": float(f"{rate * _NEXT_RATE:.1e}")}
    words = [word for name, value in given.items() for word in (f"--{name}", f"{value:g}")]
    try:
        values = from_the_student(path, config, asked, given)
        RunConfig.parse(values)
    except TinyDistillError:  # of another version, or changed by hand
        return []
    title = "Begin another run with it; add --data for other text"
    return [NextStep("onward", title, ("tiny-distill", "--start_from", str(path), *words), values=values)]


def _another_student(config: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> list[NextStep]:
    """A smaller student of the teacher's layers that learns from the records that are there."""
    layers = config.get("student_layers")
    count = layer_count(layers) if isinstance(layers, int | str) else None
    given = {"student_layers": max(1, count - 1)} if count else {}
    title = "Train a second student from the same records"
    return _from_the_records("another", title, given, config, asked, path)


def _from_the_records(
    key: str, title: str, given: Mapping[str, Any], config: Mapping[str, Any], asked: Mapping[str, Any], path: Path
) -> list[NextStep]:
    words = [word for name, value in given.items() for word in (f"--{name}", _typed(value))]
    try:
        values = second_student(path, config, asked, given)
        RunConfig.parse(values)
    except TinyDistillError:  # of another version, or changed by hand
        return []
    return [NextStep(key, title, ("tiny-distill", "--records_from", str(path), *words), values=values)]


def _typed(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _why_worse(report: Mapping[str, Any]) -> str | None:
    try:
        return why_worse(report)
    except (KeyError, TypeError, ValueError):  # of another version, or changed by hand
        return None


def _asked(report: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, with their values."""
    config, choices = _part(report, "config"), report.get("choices")
    told = [each for each in choices if isinstance(each, Mapping)] if isinstance(choices, list) else []
    given = [str(each.get("field")) for each in told if each.get("by") == "user"]
    return {name: config[name] for name in given if config.get(name) is not None}


def _spec(model: object, trust_remote_code: bool) -> ModelSpec | None:
    try:
        return read_spec(model, trust_remote_code=trust_remote_code) if isinstance(model, str | Path) else None
    except TinyDistillError:  # it was moved or deleted: the rest is true without it
        return None


def _prompt(report: Mapping[str, Any]) -> str:
    samples = report.get("samples")
    first = samples[0] if isinstance(samples, list) and samples and isinstance(samples[0], dict) else {}
    text = str(first.get("prompt") or FIRST_WORDS)
    return "\\n".join(" ".join(line.split()) for line in text.split("\n"))


def _tag(name: str) -> str:
    """A name that Ollama takes."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "student"


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _part(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = report.get(name)
    return part if isinstance(part, Mapping) else {}
