"""A plan in words: rows of settings, what each phase takes, and whether it fits. Pure, no Textual.

The figures are the planner's; here they only get their units.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.disk import places
from engine.errors import SettingsError, TinyDistillError
from engine.format import UNKNOWN, format_bytes, format_duration
from engine.machine.hardware import Hardware
from engine.model_files.demo import DEMO_TEACHER
from engine.phase_kinds import phase_noun
from engine.planner import Plan
from engine.settings.config import SETTINGS, RunConfig

# Settings that decide the peak come first; F6 shows the others, in the order of RunConfig.
FIRST_SETTINGS = (
    "teacher",
    "student",
    "data",
    "student_batch",
    "gradient_accumulation",
    "gradient_checkpointing",
    "optimizer",
    "lora_rank",
    "teacher_batch",
    "layer_by_layer",
    "sequence_length",
    "student_layers",
    "memory_budget",
    "precision",
    "record_size",
    "learning_rate",
    "epochs",
    "steps",
    "samples",
    "output_dir",
)


@dataclass(frozen=True)
class Row:
    """One setting as the table shows it.

    Attributes:
        by: "you" or "planner".
        why: the planner's reason, whole.
        was: what the planner took before the last change; empty when it is the same.
    """

    field: str
    value: str
    by: str
    why: str
    was: str = ""


@dataclass(frozen=True)
class Need:
    """A phase's use of one kind of memory.

    Attributes:
        noun: score or train.
        memory: name of the memory: "GPU" or "RAM".
        total_bytes: what the device has.
    """

    noun: str
    memory: str
    needed_bytes: int
    budget_bytes: int
    total_bytes: int

    @property
    def spare_bytes(self) -> int:
        """Return the budget's remaining bytes; negative if it is too small."""
        return self.budget_bytes - self.needed_bytes

    @property
    def fits(self) -> bool:
        """Return whether it stays inside."""
        return self.spare_bytes >= 0


def rows(planned: Plan, *, everything: bool, before: Plan | None = None) -> list[Row]:
    """The settings that matter most and those that the user set; or every one.

    Args:
        planned: what is shown.
        everything: also settings that few users change.
        before: the plan before the last change, to say what the planner now takes otherwise.
    """
    earlier = {choice.field: choice for choice in before.choices} if before is not None else {}

    def was(name: str) -> str:
        choice, old = by_name[name], earlier.get(SETTINGS[name].field)
        changed = old is not None and choice.by == old.by == "planner" and choice.value != old.value
        return shown(name, old.value) if changed and old is not None else ""

    by_name = {SETTINGS_OF[choice.field]: choice for choice in planned.choices if choice.field in SETTINGS_OF}
    if everything:
        names = list(by_name)
    else:
        set_by_person = [name for name, choice in by_name.items() if choice.by == "user"]
        names = [name for name in FIRST_SETTINGS if name in by_name]
        names += [name for name in set_by_person if name not in names]
        names = [name for name in names if by_name[name].value is not None or name in set_by_person]
    return [
        Row(name, shown(name, by_name[name].value), "you" if by_name[name].by == "user" else "planner",
            by_name[name].reason, was(name))
        for name in names
    ]  # fmt: skip


def with_unplanned(found: Iterable[Row], unplanned: Mapping[str, str]) -> list[Row]:
    """Rows of the last plan, but with the user's answer where there is no plan with it."""
    why = "no plan with this value: see above"
    return [Row(row.field, unplanned[row.field], "you", why) if row.field in unplanned else row for row in found]


SETTINGS_OF = {info.field: name for name, info in SETTINGS.items()}


def shown(name: str, value: Any) -> str:
    """A value as the table shows it."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "on" if value else "off"
    if name == "teacher" and value == str(DEMO_TEACHER):
        return "the demo's"
    if SETTINGS[name].kind == "bytes":
        return format_bytes(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}" if name != "seed" else str(value)
    return home_as_tilde(str(value)) if isinstance(value, Path) or str(value).startswith("/") else str(value)


def typed(name: str, value: Any) -> str:
    """A value as a user would type it, to begin an edit with."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if SETTINGS[name].kind == "bytes":
        return f"{value / 2**30:.1f}GiB" if value >= 2**30 else f"{value // 2**20}MiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


def needs(planned: Plan, machine: Hardware) -> list[Need]:
    """Return each phase's memory on the compute device and, with a GPU, its main memory."""
    settings, found = planned.settings, []
    device = settings.device or "cpu"
    gpu = next((gpu for gpu in machine.gpus if gpu.device == device), None)
    budget, ram_budget = settings.memory_budget or 0, settings.ram_budget or 0
    for phase, figures in planned.predicted.items():
        noun = phase_noun(phase)
        if gpu is None:
            found.append(Need(noun, "RAM", figures.peak_bytes, min(budget, ram_budget), machine.ram_bytes))
        else:
            found.append(Need(noun, "GPU", figures.peak_bytes, budget, gpu.total_bytes))
    if gpu is not None and planned.predicted:
        phase, figures = max(planned.predicted.items(), key=lambda each: each[1].ram_bytes)
        noun = phase_noun(phase)
        found.append(Need(noun, "RAM", figures.ram_bytes, ram_budget, machine.ram_bytes))
    return found


def cost(planned: Plan, machine: Hardware, width: int) -> str:
    """Disk and time in a line; the phases' own times where there is room for them, that of the preparation last."""
    parts = [f"Disk {format_bytes(planned.disk_bytes)} of {format_bytes(machine.disk_free_bytes)}"]
    spans = [f"{phase_noun(phase)} {format_duration(figures.seconds)}" for phase, figures in planned.predicted.items()]
    before = [f"{phase_noun('prepare')} {format_duration(planned.prepare_seconds)}"] if planned.prepare_seconds else []
    total = planned.prepare_seconds + sum(figures.seconds for figures in planned.predicted.values())
    error = planned.prepare_seconds_error + sum(figures.seconds_error for figures in planned.predicted.values())
    if planned.total_steps is None:
        parts.append("Time is known when the text is read")
    elif spans:
        whole = f"Time {format_duration(total)} ± {format_duration(error)}"
        lines = (*(f"{whole} ({', '.join(each)})" for each in ([*before, *spans], spans)), whole)
        parts.append(next((line for line in lines if len(parts[0]) + 3 + len(line) <= width), whole))
    return " · ".join(parts)


def parts(planned: Plan) -> str:
    """Return the parts of each phase's peak, one line per phase."""
    lines = []
    for phase, figures in planned.predicted.items():
        largest = sorted(figures.parts.items(), key=lambda part: -part[1])
        listed = " · ".join(f"{name} {format_bytes(size)}" for name, size in largest if size)
        lines.append(f"{phase_noun(phase)}: {listed}")
    return "\n".join(lines)


def verdict(planned: Plan, machine: Hardware) -> tuple[str, str]:
    """A mark and the sentences: that it fits with so much to spare, or what is missing and what would fit."""
    misfit = planned.misfit
    if misfit is not None:
        listed = " · ".join(f"{key}: {words}" for key, words in zip("ab", remedy_words(planned, machine), strict=False))
        return "wrong", f"It does not fit. {misfit.what} " + (f"These do, by key: {listed}" if listed else misfit.todo)
    settings = planned.settings
    preparing = min(settings.memory_budget or 0, settings.ram_budget or 0) - planned.prepare_bytes
    spare = min((need.spare_bytes for need in needs(planned, machine)), default=preparing)
    return "good", f"It fits, with {format_bytes(spare)} to spare."


def remedies(planned: Plan, machine: Hardware) -> list[dict[str, str]]:
    """Return settings that would fit, without budgets that the machine does not have."""
    found = []
    for remedy in planned.misfit.remedies if planned.misfit is not None else ():
        answers = {name: value if isinstance(value, str) else typed(name, value) for name, value in remedy.items()}
        budget = RunConfig.model_validate({k: v for k, v in answers.items() if k in ("memory_budget", "ram_budget")})
        has = max((need.total_bytes for need in needs(planned, machine)), default=0)
        if max(budget.memory_budget or 0, budget.ram_budget or 0) <= has:
            found.append(answers)
    return found


def remedy_words(planned: Plan, machine: Hardware) -> list[str]:
    """The remedies in words."""
    return [", ".join(f"{name} {text}" for name, text in each.items()) for each in remedies(planned, machine)]


def row_sentence(row: Row) -> str:
    """Return who chose the value, and why, as a sentence."""
    if row.value == UNKNOWN:
        return f"Not set: {row.why or 'it is not needed'}."
    was = f" (was {row.was})" if row.was else ""
    if row.by == "you":
        return f"You set it to {row.value}."
    return f"The planner takes {row.value}{was}{': ' + row.why if row.why else ''}."


def error_words(error: TinyDistillError) -> str:
    """Describe the problems of a request; for settings, with the accepted values."""
    if isinstance(error, SettingsError):
        listed = (f"{problem.setting} {problem.value}: {problem.accepted}" for problem in error.problems)
        return f"Invalid: {'; '.join(listed)}."
    return error.paragraph()


def home_as_tilde(path: str) -> str:
    """A path as a user writes it."""
    home = str(places.home())
    return "~" + path[len(home) :] if path == home or path.startswith(home + "/") else path


def cut_value(text: str, width: int) -> str:
    """A value in a narrow place: of a path its end, of anything else its beginning."""
    if len(text) <= width or "/" not in text:
        return cut_words(text, width)
    name = text.rstrip("/").rsplit("/", 1)[1]
    return f"…/{name}" if len(name) + 2 <= width else cut_words(name, width)


def cut_words(text: str, width: int) -> str:
    """The beginning of a sentence, cut between two words."""
    if len(text) <= width:
        return text
    head = text[: max(0, width - 2)]
    return (head.rsplit(" ", 1)[0] if " " in head else head).rstrip(" ,:;") + " …"


def whole_sentences(sentences: Sequence[str], width: int, rows: int = 3) -> str:
    """Both models' work, and as many of the sentences behind as the rows hold, each of them whole."""
    said = " ".join(sentences[:2])
    for sentence in sentences[2:]:
        if len(textwrap.wrap(f"{said} {sentence}", max(20, width), break_on_hyphens=False)) > rows:
            break
        said = f"{said} {sentence}"
    return said
