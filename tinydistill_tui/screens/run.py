"""One run: phases, memory, loss and log, drawn from its events; and the few things that can be asked of it.

Nothing is kept here that is not in the run's folder: leaving loses nothing, coming back reads the events again.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from textual import events, on, work
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Static
from textual.worker import get_current_worker

from engine.channel.words import text
from engine.errors import TinyDistillError
from engine.format import format_bytes, format_count, format_duration, format_percent
from engine.machine.device import CPU, Device
from tinydistill_tui.dialogs.confirm import Answer, ConfirmScreen
from tinydistill_tui.messages import RunGone, RunUpdated
from tinydistill_tui.navigation import ResumeWith, ShowResult, StartRun
from tinydistill_tui.screens.base import FrameScreen
from tinydistill_tui.view import run_words
from tinydistill_tui.view.run_view import Failure, RunView
from tinydistill_tui.view.state import RunState, run_state
from tinydistill_tui.widgets.log_pane import FilterField, LogPane
from tinydistill_tui.widgets.log_view import LogView
from tinydistill_tui.widgets.phase_list import PhaseList
from tinydistill_tui.widgets.run_plots import RunPlots
from tinydistill_tui.work import busy, control, logout, machine_share, runs, watcher

_ASKED_SECONDS = 20.0  # how long "pausing…" stands before the engine has said so


@dataclass(frozen=True)
class _Asked:
    """A request to the run without an answer yet."""

    word: str
    at: float


class RunScreen(FrameScreen):
    """Watches the run in a folder.

    Args:
        path: the run's folder.
    """

    AUTO_FOCUS = "#log-lines"
    GROUP = "Run"
    HELP = (
        "A run: its phases, its memory against the budget and the plan's prediction, its loss, its log. "
        "The run is a process of its own: closing this window does not affect it. "
        "kd is the distance from the teacher (0: equal), ce the loss on the text itself. kd below 0: the student "
        "memorises the sampled ids; then add text, not epochs."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "space", "pause", "Pause", key_display="Space", id="pause", tooltip="Pause at a safe point, or continue"
        ),
        Binding("S", "stop", "Stop", id="stop", tooltip="Stop after a checkpoint; it can be resumed"),
        Binding("R", "resume_run", "Resume", id="resume-run", tooltip="Resume a run that was stopped, failed or lost"),
        Binding(
            "C",
            "resume_with",
            "Change",
            show=False,
            id="resume-with",
            tooltip="Resume with other settings: more steps, say",
        ),
        Binding("enter", "result", "Result", id="result", show=False, tooltip="The result, or why it failed"),
        Binding("slash", "filter", "Filter", key_display="/", id="filter", tooltip="Search the log"),
        Binding("f", "follow", "Follow", id="follow", tooltip="Follow the newest line of the log, or not"),
        Binding("z", "zoom", "Zoom", id="zoom", tooltip="The focused pane alone, on the whole screen; Esc ends it"),
        Binding("y", "copy", "Copy", show=False, id="copy", tooltip="Copy the selected text, or the shown log"),
        Binding(
            "W", "write_log", "Write", show=False, id="write-log", tooltip="Write the shown log into the run's folder"
        ),
        Binding("i", "level('info')", "Info", show=False, id="level-info", tooltip="Log: everything but details"),
        Binding(
            "w", "level('warning')", "Warnings", show=False, id="level-warning", tooltip="Log: warnings and errors"
        ),
        Binding("e", "level('error')", "Errors", show=False, id="level-error", tooltip="Log: errors"),
        Binding("n", "match(1)", "Next match", show=False, id="match-next", tooltip="Log: next match"),
        Binding("N", "match(-1)", "Match before", show=False, id="match-before", tooltip="Log: the previous match"),
        Binding("c", "clear_notice", "Seen", show=False, id="clear-notice", tooltip="Dismiss the warnings"),
        Binding(
            "v", "next_metric", "Metric", show=False, id="metric", tooltip="Plot: loss, distance, learning rate, speed"
        ),
        Binding("x", "x_axis", "Axis", show=False, id="x-axis", tooltip="Plot: over steps or over time"),
        Binding("g", "log_scale", "Log scale", show=False, id="log-scale", tooltip="Plot: logarithmic or not"),
        Binding("a", "all_runs", "All runs", show=False, id="all-runs", tooltip="All runs"),
    ]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.view = RunView(name=path.name)
        self.live = False
        self.read_share = 0.0
        self.created: float | None = None
        self._device = CPU
        self._threads: int | None = None
        self._told = self.view
        self._last_word: dict[str, Any] | None = None
        self._was_live = False
        self._gone_words = ""  # what is said while the folder is gone
        self._asked: _Asked | None = None
        self._last_focus: Widget | None = None
        self._offered: tuple[bool, bool] | None = None
        self._seen_notices = 0
        self._result_shown_for: float | None = None

    def compose_content(self) -> Iterable[Widget]:
        """Phases, plots, the newest notice, log."""
        yield PhaseList(id="phases")
        yield RunPlots(id="plots")
        yield Static(id="notice", markup=False)
        yield LogPane(id="log")

    def on_mount(self) -> None:
        """Begin to watch."""
        super().on_mount()
        self.attach(self.path)

    def attach(self, path: Path) -> None:
        """Watch the run in this folder from now on, from its first event."""
        info = runs.read_info(path)
        self.path = path
        self.view, self.live, self.read_share = RunView(name=path.name), False, 0.0
        created = info.get("created")
        self.created = float(created) if isinstance(created, (int, float)) else None
        settings = info.get("settings")
        threads = settings.get("threads") if isinstance(settings, dict) else None
        self._threads = threads if isinstance(threads, int) else None
        self._device = Device.of(str(settings.get("device") or "cpu")) if isinstance(settings, dict) else CPU
        self._asked, self._seen_notices, self._result_shown_for = None, 0, None
        self._told, self._last_word, self._was_live = self.view, None, False
        self._draw()
        self._read_events(path)
        self._look_at_the_machine(path, settings if isinstance(settings, dict) else {})

    def sent_off(self) -> None:
        """A supervisor was just started for the run: it says nothing yet, and is not lost."""
        self.created = self.tiny.clock()
        self._draw()

    @work(thread=True, exclusive=True, group="tail")
    def _read_events(self, path: Path) -> None:
        worker = get_current_worker()
        watcher.watch(path, self.post_message, lambda: worker.is_cancelled or not self.is_running)

    @work(thread=True, exclusive=True, group="machine")
    def _look_at_the_machine(self, path: Path, settings: dict[str, Any]) -> None:
        """Find out what tokens a second would be at this machine's measured rate."""
        worker = get_current_worker()
        found = machine_share.full_rate(path, settings)
        if not worker.is_cancelled and self.is_attached:
            self.app.call_from_thread(self._measure_by, path, found)

    def _measure_by(self, path: Path, full_rate: float | None) -> None:
        if self.path == path and self.is_mounted:
            self.query_one(RunPlots).measure_by(full_rate)

    @property
    def state(self) -> RunState:
        """How the run stands, in a word; what was asked and not answered yet comes first."""
        if self._gone_words:
            return RunState("gone", "wrong")
        if self.read_share < 1.0:  # what is read so far is the past
            return RunState(f"reading {format_percent(self.read_share)}", "waiting", live=self.live)
        now = self.tiny.clock()
        state = run_state(self.view, live=self.live, now=now, created=self.created)
        if self._asked is not None and state.live:
            return RunState(self._asked.word, "look", live=True)
        return state

    @on(RunUpdated)
    def _updated(self, message: RunUpdated) -> None:
        nothing_new = message.view is self._told and message.live == self.live
        self._gone_words = ""
        self._told = message.view
        self.view, self.live, self.read_share = self._with_last_word(message), message.live, message.read_share
        if self._asked is not None:
            answered = self.view.control is not None or self.view.finished is not None or not self.live
            if answered or self.tiny.clock() - self._asked.at > _ASKED_SECONDS:
                self._asked = None
        if nothing_new:
            self._draw_state()
        else:
            self._draw()
        self._show_result_once()

    def _with_last_word(self, message: RunUpdated) -> RunView:
        """The view, with an error that the run could report directly only: its disk was full."""
        view = message.view
        if message.live or message.read_share < 1.0 or view.finished is not None or not self._was_live:
            self._was_live = self._was_live or message.live
            return view
        said = self._last_word or control.last_word(self.path)
        if said is None:
            return view
        self._last_word = said
        failure = Failure(*(text(said.get(part)) for part in ("what", "why", "todo")))
        return dataclasses.replace(view, finished="failed", failure=failure)

    @on(RunGone)
    def _gone(self, message: RunGone) -> None:
        self.live, self._asked = False, None
        self._gone_words = f"{message.sentence} a shows all runs."
        self._draw()

    # what is drawn

    def _draw(self) -> None:
        """Draw everything again."""
        if not self.is_mounted:
            return
        state, now = self._draw_state()
        view = self.view
        self.query_one(PhaseList).show(view, state)
        self.query_one(RunPlots).show(view, now, device=self._device)
        self._draw_notice()
        self.query_one(LogPane).show(view)

    def _draw_state(self) -> tuple[RunState, float]:
        """Redraw the lines that change with time: the first one and the one above the keys."""
        view, state = self.view, self.state
        now = self.tiny.clock() if state.live else view.last_time or self.tiny.clock()  # what is over grows no longer
        self._draw_title(state, now)
        if not isinstance(self.focused, FilterField):
            self.say(*self._verdict(state))
        if (state.live, state.resumable) != self._offered:  # too slow for each event
            self._offered = (state.live, state.resumable)
            self.refresh_bindings()
        return state, now

    def _draw_title(self, state: RunState, now: float) -> None:
        whole = self.read_share >= 1.0
        self.set_title(
            run_words.title(self.path.name, self.view, state, now, width=self.size.width, whole=whole),
            run_words.right_end(self.view, live=self.live and whole, width=self.size.width),
        )

    def _draw_notice(self) -> None:
        words = run_words.notice(self.view.notices[self._seen_notices :], self.size.width)
        notice = self.query_one("#notice", Static)
        notice.set_class(words is not None, "-some")
        if words is not None:
            notice.update(words)

    def _verdict(self, state: RunState) -> tuple[str, str]:
        """The sentence above the keys."""
        if self._gone_words:
            return self._gone_words, "wrong"
        hint = getattr(self.focused, "hint", "") or LogView.hint
        phase = self.view.current
        if state.live and phase is not None and phase.state == "running" and run_words.verdict(state) is None:
            slow = busy.words(busy.load(), busy.cores(), self._threads or busy.cores())
            if slow:
                return slow, "look"
        return run_words.verdict(state) or (hint, "")

    # the result

    def _show_result_once(self) -> None:
        """The result comes by itself when the run ends, once for each end."""
        ended = self.view.finished in ("done", "failed") and not self.live and self.read_share >= 1.0
        if ended and self._result_shown_for != self.view.last_time and self.app.screen is self:
            self._result_shown_for = self.view.last_time
            self.call_later(self.action_result)

    async def action_result(self) -> None:
        """Show the result, or why it failed."""
        if self.view.finished in ("done", "failed"):
            await self.tiny.navigate(ShowResult(self.path, self.view))

    # what can be asked of the run

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what can be done now is shown below."""
        if not self.is_mounted:
            return True
        if action in ("pause", "stop"):
            return self.state.live and not self.state.word.startswith("stopping")
        if action == "resume_run":
            return self.state.resumable
        if action == "resume_with":
            return self.state.resumable or self.state.word == "done"
        return True

    async def action_leave(self) -> None:
        """Leave; ask first when the run is going."""
        if not self.state.live:
            self.app.exit()
        else:
            self._ask_to_leave()

    @work(exclusive=True, group="leave")
    async def _ask_to_leave(self) -> None:
        phase = self.view.current
        share = f": {format_percent(phase.share)}" if phase is not None and phase.share is not None else ""
        left = f", about {format_duration(phase.eta_seconds)} left" if phase is not None and phase.eta_seconds else ""
        at_logout = await asyncio.to_thread(logout.warning, self.view.pid)
        answer = await self.app.push_screen_wait(
            ConfirmScreen(
                "The run is still running",
                f"{self.path.name} is {self.state.word}{share}{left}.\nClosing this window does not affect it."
                f"{f' {at_logout}' if at_logout else ''}",
                [
                    Answer("leave", "Leave it running", "d"),
                    Answer("stop", "Stop, keep state", "s", costs=True),
                    Answer("stay", "Stay", "q"),
                ],
            )
        )
        if answer == "stop":
            self._ask_engine("stop", "stopping…")
        if answer in ("leave", "stop"):
            self.app.exit()

    @work(group="dialog")
    async def action_stop(self) -> None:
        """Stop the run after a checkpoint, if the user confirms it."""
        step = f" at step {format_count(self.view.step)}" if self.view.step else " where it is"
        size = f" ({format_bytes(self.view.checkpoint_bytes)})" if self.view.checkpoint_bytes else ""
        answer = await self.app.push_screen_wait(
            ConfirmScreen(
                f"Stop {self.path.name}?",
                f"It stops after the current step and a checkpoint{size}.\nNothing is lost: it resumes{step}.",
                [Answer("stay", "Keep running", "k"), Answer("stop", "Stop it", "s", costs=True)],
            )
        )
        if answer == "stop":
            self._ask_engine("stop", "stopping…")

    def action_pause(self) -> None:
        """Pause, or continue when paused."""
        paused = self.view.control in ("pausing", "paused")
        self._ask_engine("resume" if paused else "pause", "continuing…" if paused else "pausing…")

    def _ask_engine(self, command: str, word: str) -> None:
        try:
            control.ask(self.path, command)
        except TinyDistillError as error:
            self.tiny.tell(error)
            return
        if command != "resume":
            self._asked = _Asked(word, self.tiny.clock())
        self._draw()

    async def action_resume_run(self) -> None:
        """Start a supervisor again for a run without one."""
        try:
            await self.tiny.navigate(StartRun(self.path))
        except TinyDistillError as error:
            self.tiny.tell(error)

    async def action_resume_with(self) -> None:
        """Resume with settings that are asked for."""
        await self.tiny.navigate(ResumeWith(self.path))

    # the log and the plots

    def go_to_last_error(self) -> None:
        """Bring the newest error of the log into sight."""
        self.query_one(LogPane).go_to_last_error()

    def action_filter(self) -> None:
        """Search the log."""
        self.query_one(LogPane).open_field()

    def action_follow(self) -> None:
        """Follow the end of the log, or not."""
        window = self.query_one(LogPane).window
        window.follow = not window.follow

    def action_level(self, level: str) -> None:
        """Show the log from this level on."""
        self.query_one(LogPane).set_level(level)

    def action_match(self, step: int) -> None:
        """Go to another match in the log."""
        if not self.query_one(LogPane).go_to_match(step):
            self.say("There is no match to go to: / searches the log.", "look")

    def action_copy(self) -> None:
        """Copy the selected text, or else the shown log."""
        selected = self.get_selected_text()
        copied = selected or self.query_one(LogPane).text()
        if not copied:
            self.notify("Nothing to copy yet: the log shows no line.", severity="warning", markup=False)
            return
        size = format_bytes(len(copied.encode()))
        what = "the selected text" if selected else "the shown log"
        self.tiny.copy(copied, what, f": {size}. The whole log: {self.path / 'run.log'}")

    def action_write_log(self) -> None:
        """Write the shown log into the run's folder."""
        try:
            path = self.query_one(LogPane).write(self.path)
        except OSError as error:
            self.notify(f"It could not be written: {error.strerror or error}.", severity="error", markup=False)
        else:
            self.notify(f"Written: {path}", markup=False)

    def action_zoom(self) -> None:
        """Maximise the focused pane, or end that."""
        if self.maximized is not None:
            self.minimize()
            return
        pane: Widget | None = self.focused
        while pane is not None and not pane.has_class("pane"):
            pane = pane.parent if isinstance(pane.parent, Widget) else None
        if pane is not None:
            self.maximize(pane, container=False)

    def action_clear_notice(self) -> None:
        """The notices are seen."""
        self._seen_notices = len(self.view.notices)
        self._draw_notice()

    def action_next_metric(self) -> None:
        """Another metric in the plot."""
        self.query_one(RunPlots).next_metric()

    def action_x_axis(self) -> None:
        """Steps or time."""
        self.query_one(RunPlots).other_axis()

    def action_log_scale(self) -> None:
        """A logarithmic scale, or not."""
        self.query_one(RunPlots).other_scale()

    def action_all_runs(self) -> None:
        """The list of runs."""
        self.app.switch_mode("runs")

    async def action_back(self) -> None:
        """Leave the zoom, then the filter, then this screen."""
        if self.maximized is not None:
            self.minimize()
        elif not self.query_one(LogPane).close_field():
            await self.action_leave()

    def on_resize(self) -> None:
        """Cut lines to the new width; the focus returns with the pane that had it."""
        self._draw()
        self.call_after_refresh(self._restore_focus)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Remember it: a pane that a small window hides loses the focus."""
        super().on_descendant_focus(event)
        self._last_focus = event.widget

    def _restore_focus(self) -> None:
        if self.focused is None and self._last_focus is not None:
            self._last_focus.focus()
