"""The user's answers so far, saved after every step, so that no answer is typed twice.

Answers are text as it was typed, good or bad: a bad one stays until it is corrected. RunConfig says what they mean, the
planner what comes of them. Knows no screens.
"""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.disk import places
from engine.disk.files import write_atomic
from engine.errors import Problem
from engine.format import exact_bytes
from engine.planner import Plan
from engine.settings.command import until_of
from engine.settings.config import SETTINGS, RunConfig, check_value

_MOST_UNDONE = 200


@dataclass
class Draft:
    """A run that is being prepared.

    Attributes:
        answers: setting to text, as typed; what is not in it is the planner's.
        plan: what came of them last; None before the planner answered.
        note: a message to show once, such as about a damaged file; empty if none.
        started: whether a run was made of it.
        source: where the answers came from, as "from the command line"; empty when they were given in the wizard.
    """

    answers: dict[str, str] = field(default_factory=dict)
    plan: Plan | None = None
    note: str = ""
    started: bool = False
    source: str = ""
    _before: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str = "") -> Draft:
        """A draft of settings by name, as a profile or the command line gives them."""
        answers = {name: _as_text(value, name) for name, value in values.items() if _is_answer(name, value)}
        return cls(answers, source=source)

    @classmethod
    def load(cls) -> Draft:
        """The draft of last time; an empty one where there is none. A damaged file is put aside, with a note."""
        path = draft_path()
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except OSError as error:
            return cls(note=f"Your last answers cannot be read: {error.strerror or error}.")
        except (ValueError, RecursionError):
            aside = path.with_suffix(".bad")
            with contextlib.suppress(OSError):
                path.replace(aside)
            return cls(note=f"Your last answers were damaged; they are in {aside.name} now.")
        return cls.of(values)

    def save(self) -> None:
        """Write the answers; that it cannot be done becomes a note, for the run does not depend on it."""
        path = draft_path()
        lines = (f"{name} = {json.dumps(text, ensure_ascii=False)}\n" for name, text in self.answers.items())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, "".join(lines))
        except OSError as error:
            self.note = f"Your answers could not be saved: {error.strerror or error}."

    def replace(self, other: Draft) -> None:
        """Become another draft: the steps share one object."""
        self.answers, self.plan, self.note, self.started = other.answers, None, other.note, False
        self.source = other.source
        self._before.clear()

    def get(self, name: str) -> str:
        """The answer as typed; empty when it is the planner's."""
        return self.answers.get(name, "")

    def set(self, name: str, text: str) -> None:
        """Take an answer; an empty one gives the setting back to the planner."""
        text = text.strip()
        if text == self.get(name):
            return
        if text:
            self.answers[name] = text
            if name in ("teacher", "data"):
                self.answers.pop("demo", None)  # the demo brings its own
            if name == "student" and text != "from-teacher":
                self.answers.pop("student_layers", None)
        else:
            self.answers.pop(name, None)

    def remember(self) -> None:
        """Make what is there now the place that :meth:`undo` comes back to."""
        if not self._before or self._before[-1] != self.answers:
            self._before.append(dict(self.answers))
            del self._before[:-_MOST_UNDONE]

    def undo(self) -> bool:
        """Undo the last change; whether there was one."""
        while self._before:
            earlier = self._before.pop()
            if earlier != self.answers:
                self.answers = earlier
                return True
        return False

    def problem(self, name: str) -> str | None:
        """Return what is accepted if the answer is invalid, else None."""
        return check_value(name, self.answers[name]) if name in self.answers else None

    def problems(self, names: Iterable[str] | None = None) -> list[Problem]:
        """Everything that is wrong, contradictions last.

        Args:
            names: only these settings; all when not given.
        """
        wrong = [
            Problem(name, text, sentence)
            for name, text in self.answers.items()
            if (sentence := check_value(name, text)) is not None
        ]
        wrong += self.good_config().contradictions()
        return wrong if names is None else [problem for problem in wrong if problem.setting in set(names)]

    def good_config(self) -> RunConfig:
        """The answers that are good, and the planner's pick for models that are not named."""
        good = {name: text for name, text in self.answers.items() if check_value(name, text) is None}
        return RunConfig.model_validate({**good, "use_recommended": True})

    def asked_config(self) -> RunConfig:
        """The same as it would be typed: with the models that the planner picked, for the command line."""
        config = self.good_config()
        named = {} if self.plan is None or config.demo else {
            name: getattr(self.plan.settings, name)
            for name in ("teacher", "student")
            if getattr(config, name) is None
        }  # fmt: skip
        return RunConfig.model_validate({**config.asked(), **until_of(config), **named})


def draft_path() -> Path:
    """Where the draft is kept."""
    return places.state() / "last.toml"


def budget_text(text: str, free_bytes: int) -> str:
    """A budget as a user types it, in words that RunConfig reads: ``3`` is GiB, ``80 %`` is of what is free."""
    text = text.strip()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        return f"{int(free_bytes * float(match[1]) / 100 / 2**20)}MiB"
    if re.fullmatch(r"\d{1,4}(\.\d+)?", text):
        return f"{text}GiB"
    return text


def _is_answer(name: str, value: Any) -> bool:
    of_command = name == "until" or (name == "demo" and _as_text(value) == "on")
    known = name in SETTINGS and (SETTINGS[name].group != "command" or of_command)
    return known and isinstance(value, (str, bool, int, float, Path)) and _as_text(value).strip() != ""


def _as_text(value: Any, name: str = "") -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if name and isinstance(value, int) and SETTINGS[name].kind == "bytes":
        return exact_bytes(value)
    return str(value)
