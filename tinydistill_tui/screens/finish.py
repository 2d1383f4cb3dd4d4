"""How a run ended: the result in a sentence, the numbers, samples, and what to do next; or why it failed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from rich.cells import set_cell_size
from textual import events, on, work
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from engine.disk import places
from engine.errors import Problem, SettingsError, TinyDistillError
from engine.format import format_duration
from engine.run import launch
from engine.run.afterwards import FILE, FIRST_WORDS, NextStep, about_the_student, next_steps
from engine.settings import profiles
from engine.settings.command import resume_command
from engine.settings.config import RunConfig
from tinydistill_tui.dialogs.confirm import Answer, ConfirmScreen
from tinydistill_tui.dialogs.details import PageScreen
from tinydistill_tui.dialogs.name import NameScreen
from tinydistill_tui.navigation import AskFor, ResumeWith, ShowLog, StartRun, TalkTo
from tinydistill_tui.screens.base import FrameScreen, marked
from tinydistill_tui.view import result
from tinydistill_tui.view.data_facts import printable
from tinydistill_tui.view.marks import MARK_STYLES, MARKS
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.widgets.sample_box import SampleBox
from tinydistill_tui.work import runs

_ROOMY = 36  # rows from which on everything is shown
_LEFT_OUT_FIRST = ("bits a byte", "calibration error")


class FinishScreen(FrameScreen):
    """The end of a run.

    Args:
        path: the run's folder.
        view: what its events say.
    """

    AUTO_FOCUS = "#next, #finish"
    GROUP = "Result"
    ENTER = "Do the chosen step"
    HELP = "The result of the run. report.md and report.json in its folder have the same figures."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("R", "resume_run", "Resume", id="finish-resume", tooltip="Resume the failed run"),
        Binding(
            "C",
            "resume_with",
            "Change",
            show=False,
            id="finish-change",
            tooltip="Resume with other settings: more steps, say",
        ),
        Binding("left,h", "sample(-1)", "Sample", key_display="←→", id="sample-before", tooltip="The sample before"),
        Binding("right", "sample(1)", "Next sample", show=False, id="sample-next", tooltip="The next sample"),
        Binding("y", "copy", "Copy", id="finish-copy", tooltip="Copy the chosen command"),
        Binding(
            "e",
            "edit",
            "Edit",
            show=False,
            id="finish-edit",
            tooltip="Edit the chosen command and run it: other flags, another program",
        ),
        Binding("o", "report", "Report", id="report", tooltip="Read report.md (or run.log) in the pager"),
        Binding("l", "log", "Log", id="finish-log", tooltip="Plots and log of the run"),
        Binding("a", "all_runs", "All runs", id="finish-all-runs", tooltip="All runs"),
        Binding("n", "new_like_this", "New like this", id="finish-like", tooltip="A new run with these settings"),
        Binding("N", "new_run", "New run", show=False, id="finish-new", tooltip="Begin another run"),
        Binding("p", "profile", "Profile", show=False, id="finish-profile", tooltip="Save these settings as a profile"),
    ]

    def __init__(self, path: Path, view: RunView) -> None:
        super().__init__()
        self.path, self.view = path, view
        self.failed = view.finished == "failed"
        self.report = {} if self.failed else runs.read_json(path / "report.json")
        # Talking is to all three at once here, so that the second command for it is one too many.
        found = next_steps(self.report, path) if self.report else []
        self.steps = [step for step in found if step.key != "beside"]

    def compose_content(self) -> Iterable[Widget]:
        """One sentence, then the numbers, then what to do."""
        yield Static(self._first_sentence(), id="headline", markup=False)
        with VerticalScroll(id="finish", can_focus=not self.report):
            if self.report:
                yield Static(self._student_words(), id="student", markup=False)
                yield Static(id="numbers")
                yield SampleBox(result.samples(self.report), id="samples", classes="pane")
                yield OptionList(*self._options(), id="next", compact=True, markup=False)
                yield Static(id="command", markup=False)
            else:
                yield Static(self._why(), id="why", markup=False)

    def on_mount(self) -> None:
        """The title says how it ended and how long it took."""
        super().on_mount()
        mark = "wrong" if self.failed else "good"
        took = format_duration(self.view.elapsed_seconds(self.view.last_time or 0.0))
        word = f"failed after {took}" if self.failed else f"done in {took}"
        title = Content.assemble(
            (f"{self.path.name}  ", "bold"), (f"{MARKS[mark]} {word}", f"bold {MARK_STYLES[mark]}")
        )
        self.set_title(title, "report.md  report.json" if self.report else "")
        self._say_command()

    @on(events.ScreenResume)
    def _draw_student(self) -> None:
        """Where the student is, how large and how fast: talking to it measures that."""
        for student in self.query("#student").results(Static):
            student.update(self._student_words())

    def _student_words(self) -> str:
        return _with_tilde("\n".join(about_the_student(self.report, self.path)))

    @on(events.Resize)
    def _draw_numbers(self) -> None:
        """The table; where there are few rows, its first measures, and what the run took is in the report."""
        for numbers in self.query("#numbers").results(Static):
            numbers.update(self._numbers(whole=self.app.size.height >= _ROOMY))
        self.call_after_refresh(self.refresh_bindings)

    def _first_sentence(self) -> Content:
        if self.failed:
            what = self.view.failure.what if self.view.failure else "The run failed and gave no reason."
            return marked("wrong", what)
        sentence = result.first_sentence(self.report)
        if sentence is None and not self.report:
            asked = (runs.read_info(self.path).get("settings") or {}).get("until")
            if asked:
                return marked("good", f"The requested phases are done: the run stops after {asked}.")
            return marked("look", "The run is done, but its report.json is missing or cannot be read.")
        if sentence is None:
            return marked("look", "The run is done, but this version cannot read its report.json.")
        return marked("good" if result.is_success(self.report) else "look", sentence)

    def _why(self) -> Content:
        if not self.failed:
            return Content(f"The run: {self.path}\nEsc or l: plots and log.")
        failure = self.view.failure
        lines = [failure.why, failure.todo] if failure else []
        lines += [
            "Completed work is kept: R tries again from there, y copies the command:\n" + resume_command(self.path),
            f"The full log: {self.path / 'run.log'}",
        ]
        return Content("\n\n".join(line for line in lines if line))

    def _numbers(self, *, whole: bool) -> Content:
        rows = result.table(self.report)
        rows = rows if whole else [row for row in rows if row[0] not in _LEFT_OUT_FIRST]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        if sum(widths) + 3 * 4 + 2 > self.app.size.width - 4:  # the change can be seen from the others
            rows, widths = [row[:4] for row in rows], widths[:4]
        lines = []
        for number, row in enumerate(rows):
            cells = [row[0].ljust(widths[0] + 2)] + [
                cell.rjust(width + 3) for cell, width in zip(row[1:], widths[1:], strict=True)
            ]
            style = "$text-quiet" if number == 0 else ""
            after = "bold" if number else style
            lines.append(Content.assemble(("".join(cells[:3]), style), (cells[3], after), ("".join(cells[4:]), style)))
        lines += [
            Content.assemble((set_cell_size(name, 7), "$text-quiet"), words)
            for name, words in (result.costs(self.report) if whole else ())
        ]
        return Content("\n").join(lines)

    def _options(self) -> list[Option]:
        options = [Option(step.title, id=f"step-{step.key}") for step in self.steps]
        if result.samples(self.report):
            behind_talk = 1 + next((place for place, step in enumerate(self.steps) if step.key == "talk"), 0)
            options.insert(behind_talk, Option("Read the samples", id="step-samples"))
        return options

    @on(OptionList.OptionHighlighted)
    def _say_command(self) -> None:
        chosen = self._chosen()
        again = "R tries again from there; l shows the log, at the error."
        self.hint = (
            f"Enter does it, y copies the command; {FILE} in its folder has all of them."
            if chosen
            else again
            if self.failed
            else ""
        )
        self.say(self.hint)
        for command in self.query("#command").results(Static):
            command.update(f"$ {_with_tilde(chosen.line)}" if chosen else "")

    @on(OptionList.OptionSelected)
    async def _do(self, event: OptionList.OptionSelected) -> None:
        chosen = self._chosen()
        if chosen is None:
            self._show_samples()
        elif chosen.key == "talk":
            await self._talk()
        elif chosen.key == "longer":
            self._train_longer(chosen)
        elif chosen.key in ("again", "onward", "another"):
            self._train_another(chosen)
        elif chosen.key == "folder":
            self.tiny.run_in_the_terminal([os.environ.get("SHELL") or "sh"], folder=self.path)
        else:
            self.tiny.run_in_the_terminal(chosen.words)

    def _show_samples(self) -> None:
        samples = result.samples(self.report)
        text = "\n\n".join("\n".join(f"{name.ljust(9)}{words}" for name, words in each.items()) for each in samples)
        self.app.push_screen(PageScreen("Samples", printable(text)))

    async def _talk(self) -> None:
        samples = result.samples(self.report)
        await self.tiny.navigate(TalkTo(self.path, samples[0]["prompt"] if samples else FIRST_WORDS))

    @work(group="dialog")
    async def _train_longer(self, step: NextStep) -> None:
        """Resume the run if the user confirms it: it may take as long as the first time."""
        answer = await self.app.push_screen_wait(
            ConfirmScreen(
                f"{step.title}?",
                f"The first training took {format_duration(self._train_seconds)}. The current student is replaced "
                "when it is done.",
                [Answer("stay", "Not now", "n"), Answer("go", "Train it", "t", costs=True)],
            )
        )
        if answer != "go":
            return
        try:
            await asyncio.to_thread(launch.resume_run, RunConfig.parse(dict(step.values)))
            await self.tiny.navigate(StartRun(self.path))
        except TinyDistillError as error:
            self.tiny.tell(error)

    @property
    def _train_seconds(self) -> float | None:
        phase = self.view.phases.get("student")
        return phase.seconds if phase is not None else None

    @work(group="dialog")
    async def _train_another(self, step: NextStep) -> None:
        await self.tiny.navigate(AskFor(step.values))

    def _chosen(self) -> NextStep | None:
        """The step under the cursor; None on the samples, and where there is no menu."""
        for menu in self.query("#next").results(OptionList):
            if menu.highlighted is not None:
                key = str(menu.options[menu.highlighted].id).removeprefix("step-")
                return next((step for step in self.steps if step.key == key), None)
        return None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what makes sense for this end."""
        if action == "resume_run":
            return self.failed
        if action == "sample":
            return any(box.size.height for box in self.query(SampleBox))
        if action == "copy":
            return bool(self.report) or self.failed
        return True

    def action_copy(self) -> None:
        """Copy the chosen command, or the one that resumes a failed run."""
        chosen = self._chosen()
        line = chosen.line if chosen is not None else resume_command(self.path) if self.failed else ""
        if line:
            self.tiny.copy(line, "the command", f": {line}")

    @work(group="dialog")
    async def action_edit(self) -> None:
        """Run a command that begins as the chosen one, in the terminal."""
        chosen = self._chosen()
        line = shlex.join(chosen.words) if chosen is not None else resume_command(self.path)
        cache = next((step.words[-1] for step in self.steps if step.key == "cache"), str(self.path / "cache"))
        words = (
            "Any command; --help behind a program's name shows its flags. "
            f"There are also:\n{shlex.join(('tiny-distill-eval', str(self.path)))}\n"
            f"{shlex.join(('tiny-distill-cache', 'verify', cache))}\n"
            "↵ runs it in this terminal · Esc leaves it"
        )
        typed = await self.app.push_screen_wait(NameScreen("Edit the command", line, _words_of, words))
        if typed is not None:
            self.tiny.run_in_the_terminal(_words_of(typed))

    def action_sample(self, step: int) -> None:
        """Another sample."""
        for box in self.query(SampleBox):
            box.turn(step)

    def action_report(self) -> None:
        """Read the report, or the log, in the user's pager."""
        name = "report.md" if self.report else "run.log"
        self.tiny.show_in_pager(self.path / name)

    async def action_resume_run(self) -> None:
        """Try again."""
        try:
            await self.tiny.navigate(StartRun(self.path))
        except TinyDistillError as error:
            self.tiny.tell(error)

    async def action_resume_with(self) -> None:
        """Resume with settings that are asked for."""
        await self.tiny.navigate(ResumeWith(self.path))

    async def action_log(self) -> None:
        """Back to plots and log, at the error if there was one."""
        await self.tiny.navigate(ShowLog(at_error=self.failed))

    @property
    def _asked(self) -> dict[str, object]:
        asked = runs.read_info(self.path).get("asked")
        return asked if isinstance(asked, dict) else {}

    async def action_new_like_this(self) -> None:
        """The wizard, beginning with what was asked of this run."""
        await self.tiny.navigate(AskFor(self._asked))

    @work(group="dialog")
    async def action_profile(self) -> None:
        """Save these settings as a profile."""
        asked = {name: value for name, value in self._asked.items() if name != "output_dir"}
        name = await self.app.push_screen_wait(
            NameScreen("Save as a profile", "", lambda name: profiles.save(name, asked))
        )
        if name is not None:
            self.notify(f"Saved. Use it: tinydistill-tui --profile {name}", markup=False)

    def action_all_runs(self) -> None:
        """The list of runs."""
        self.app.switch_mode("runs")

    def action_new_run(self) -> None:
        """The wizard."""
        self.app.switch_mode("wizard")


def _words_of(line: str) -> list[str]:
    """A command's words.

    Raises:
        SettingsError: there are none.
    """
    with contextlib.suppress(ValueError):  # an open quote
        if words := shlex.split(line):
            return words
    raise SettingsError([Problem("This", line, "a command, with each quotation mark closed")])


def _with_tilde(text: str) -> str:
    """The same words with the user's home as a shell has it."""
    return re.sub(rf"(?<=\s){re.escape(str(places.home()))}/", "~/", text)
