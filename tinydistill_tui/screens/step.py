"""Common parts of the wizard's steps: the stepper, Next that validates, and Back that never does.

A step shows fields and writes what is typed into the draft at once, good or bad. Next goes to the first field that is
bad and says what is accepted; Back goes back.
"""

from __future__ import annotations

from typing import ClassVar

from textual import events, on, work
from textual.binding import Binding, BindingType
from textual.widgets import Input

from tinydistill_tui.navigation import GoTo, Step
from tinydistill_tui.screens.base import FrameScreen
from tinydistill_tui.widgets.field import ChoiceLine, TextField
from tinydistill_tui.widgets.title_row import stepper
from tinydistill_tui.work.draft import Draft

SEE_ABOVE = "The red lines above say what is wrong."


ROW = 78
"""Characters of the row above the keys at the smallest size that shows all."""


class StepScreen(FrameScreen):
    """A step of the wizard.

    Args:
        draft: the answers; the steps share it.
    """

    NUMBER: ClassVar[int] = 0
    NEXT: ClassVar[Step | None] = None
    """The step behind this one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave", "Quit", show=False, id="leave", tooltip="Leave; the answers are kept for next time"),
        Binding("escape", "back", "Back", key_display="Esc", id="step-back", tooltip="The previous step, unchecked"),
        Binding("enter", "next", "Next", key_display="↵", id="step-next", tooltip="On, or to the first bad field"),
    ]

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self.draft = draft

    async def wrong_field(self) -> tuple[str, str] | None:
        """A setting of this step that is wrong although it reads well, and what is wrong; None when all is good."""
        return None

    @property
    def is_there(self) -> bool:
        """Return whether the screen has not been left; later results of its workers are dropped."""
        return self.is_attached and self in self.app.screen_stack

    def on_mount(self) -> None:
        """The title says where we are; fields that are bad already say so."""
        self.set_title(stepper(self.NUMBER))
        for field in self.query(TextField):
            field.problem = self._problem_of(field)
            field.set_class(bool(field.problem), "-bad")

    def on_screen_resume(self) -> None:
        """Once a run was made of the draft, its steps are done.

        The message may come when the screen has already been taken away, with the others.
        """
        if self.draft.started and self.app.screen is self:
            self.app.pop_screen()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Say what the focused field is for, or what is wrong with it."""
        event.prevent_default()
        self.say_of(event.widget)

    def say_of(self, widget: object) -> None:
        """The sentence of a widget above the keys."""
        problem = getattr(widget, "problem", "")
        if problem:
            self.say(problem, "wrong")
        else:
            self.say(getattr(widget, "hint", "") or self.hint)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        field = event.input
        if not isinstance(field, TextField):
            return
        self.draft.set(field.setting, self.meant(field))
        self.set_problem(field, self._problem_of(field))
        self.changed(field.setting)

    @on(ChoiceLine.Changed)
    def _chosen(self, event: ChoiceLine.Changed) -> None:
        self.draft.set(event.line.setting, event.value)
        self.changed(event.line.setting)

    def meant(self, field: TextField) -> str:
        """Return the draft's value for the content of a field."""
        return field.value

    def changed(self, setting: str) -> None:
        """Something was typed or chosen."""

    def set_problem(self, field: TextField, problem: str) -> None:
        """Mark a field as bad, or as good again."""
        field.problem = problem
        field.set_class(bool(problem), "-bad")
        if field.has_focus:
            self.say_of(field)

    def _problem_of(self, field: TextField) -> str:
        sentence = self.draft.problem(field.setting)
        return bad_value(field.setting, self.draft.get(field.setting), sentence) if sentence else ""

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.action_next()

    @work(exclusive=True, group="next")
    async def action_next(self) -> None:
        """On to the next step, or to the first field that is bad."""
        for field in self.query(TextField):
            if self._problem_of(field):
                self.land_on(field.setting, self._problem_of(field))
                return
        wrong = await self.wrong_field()
        if wrong is not None:
            self.land_on(*wrong)
            return
        self.draft.save()
        if self.draft.note:
            self.notify(self.draft.note, severity="warning", markup=False)
            self.draft.note = ""
        if self.NEXT is not None:
            await self.tiny.navigate(GoTo(self.NEXT, self.draft))

    def land_on(self, setting: str, sentence: str) -> None:
        """Put the cursor where something is wrong, and say what."""
        for field in self.query(TextField):
            if field.setting == setting and field.display:
                self.set_problem(field, sentence)
                field.focus()
        self.say(sentence, "wrong")

    async def action_back(self) -> None:
        """The step before, at once; what was typed stays."""
        self.draft.save()
        self.app.pop_screen()

    async def action_leave(self) -> None:
        """Leave; the answers are there next time."""
        self.draft.save()
        self.app.exit()


def bad_value(setting: str, value: str, sentence: str) -> str:
    """A sentence about a value that is not accepted, on one row: a long value is shortened, the sentence is not."""
    room = ROW - len(f"✗ {setting} : {sentence}")
    if len(value) > room:
        value = f"{value[: room - 1]}…" if room > 3 else ""
    return f"{setting} {value}: {sentence}" if value else f"{setting}: {sentence}"
