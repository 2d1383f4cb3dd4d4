"""The planner, asked in a thread each time an answer changes.

The newest question counts: an older one that is still being worked on is dropped, and the screen learns of the answer
by a message. Predicted times are cautious until the machine was measured, which this does once for a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from textual.message import Message
from textual.timer import Timer
from textual.worker import get_current_worker

from engine.disk.runs import default_runs_path
from engine.errors import SettingsError, TinyDistillError
from engine.machine import hardware
from engine.machine.gpu_check import checked
from engine.machine.hardware import Hardware
from engine.planner import Plan, measure, plan
from tinydistill_tui.screens.step import StepScreen
from tinydistill_tui.widgets.once import after

PLAN_AFTER_SECONDS = 0.15  # a pause in typing, after which the planner is asked


@dataclass
class PlanChanged(Message):
    """The planner has answered.

    Attributes:
        answers: what it was asked, so that an old answer is known as one.
        planned: the plan, also when it does not fit; None when the request is wrong.
        error: what is wrong with the request.
    """

    answers: dict[str, str]
    planned: Plan | None
    error: TinyDistillError | None = None

    def can_replace(self, message: Message) -> bool:
        """Only the newest counts."""
        return isinstance(message, PlanChanged)


class Planning:
    """Questions to the planner about the answers of a screen's draft.

    Args:
        screen: receives a :class:`PlanChanged` for each answer; its workers ask.

    Attributes:
        machine: the hardware that plans are made for; None until the first plan and after :meth:`again`.
        error: what is wrong with the newest question, where it has no plan.
        before: the plan before the draft's, where that had other settings.
    """

    def __init__(self, screen: StepScreen) -> None:
        self.machine: Hardware | None = None
        self.error: TinyDistillError | None = None
        self.before: Plan | None = None
        self._screen = screen
        self._draft = screen.draft
        self._timer: Timer | None = None
        self._planned_for: dict[str, str] | None = None
        self._shown_for: dict[str, str] | None = None
        self._measured_for: tuple[str, int | None] | None = None

    @property
    def up_to_date(self) -> bool:
        """Return whether the newest answer belongs to what was typed."""
        return self._planned_for == self._draft.answers

    @property
    def unplanned(self) -> dict[str, str]:
        """The answers that the draft's plan was not made with, as the planner has refused them."""
        if self.error is None or self._shown_for is None:
            return {}
        return {name: text for name, text in self._draft.answers.items() if text != self._shown_for.get(name)}

    def soon(self, seconds: float | None = None) -> None:
        """Ask after a pause in typing, instead of a question that still waits."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = after(self._screen, PLAN_AFTER_SECONDS if seconds is None else seconds, self._start_asking)

    def at_once(self) -> None:
        """Ask now."""
        self.soon(0.01)

    def again(self) -> None:
        """Look at the machine again, and ask."""
        self.machine = self._screen.tiny.machine = None
        self.at_once()

    def take(self, message: PlanChanged) -> bool:
        """Take an answer; return False, and ask again, where something was typed meanwhile."""
        if message.answers != self._draft.answers:
            self.soon()
            return False
        self._planned_for, self.error = message.answers, message.error
        if message.planned is not None:
            if self._draft.plan is not None and message.planned.settings != self._draft.plan.settings:
                self.before = self._draft.plan
            self._draft.plan, self._shown_for = message.planned, message.answers
            self._measure_once(message.planned)
        return True

    def _start_asking(self) -> None:
        self._screen.run_worker(self._ask, thread=True, exclusive=True, group="plan")

    def _ask(self) -> None:
        worker, answers = get_current_worker(), dict(self._draft.answers)
        try:
            if self.machine is None:
                known = self._screen.tiny.machine or hardware.detect(default_runs_path())
                self.machine = self._screen.tiny.machine = checked(known)
            problems = self._draft.problems()
            if problems:
                raise SettingsError(problems, "")
            planned = plan(self._draft.good_config(), hardware=self.machine, strict=False)
            found = PlanChanged(answers, planned)
        except TinyDistillError as error:
            found = PlanChanged(answers, None, error)
        if not worker.is_cancelled:
            self._screen.post_message(found)

    def _measure_once(self, planned: Plan) -> None:
        """Measure the device that the plan is for, unless that was done: until then times are cautious figures."""
        wanted = planned.settings.device or "cpu", planned.settings.threads
        if wanted != self._measured_for:
            self._measured_for = wanted
            measuring = partial(self._measure, *wanted)
            self._screen.run_worker(measuring, thread=True, exclusive=True, group="measure")

    def _measure(self, device: str, threads: int | None) -> None:
        measure.machine_rates(measure=True, device=device, threads=threads)
        if not get_current_worker().is_cancelled:
            self._screen.app.call_from_thread(self.at_once)
