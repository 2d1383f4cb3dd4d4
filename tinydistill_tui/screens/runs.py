"""All runs, with their state; open, resume, delete."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import DataTable, Input, Static
from textual.worker import get_current_worker

from engine.disk import places
from engine.disk.runs import default_runs_path
from engine.errors import TinyDistillError
from engine.format import format_bytes, format_duration, format_number, format_percent, format_when
from tinydistill_tui.dialogs.confirm import Answer, ConfirmScreen
from tinydistill_tui.navigation import AskFor, OpenRun, ResumeWith, StartRun
from tinydistill_tui.screens.base import FrameScreen, marked
from tinydistill_tui.view.marks import spark
from tinydistill_tui.widgets.row_table import RowTable
from tinydistill_tui.work import runs
from tinydistill_tui.work.runs import RunList, RunSummary

_POLL_SECONDS = 2.0
_COLUMNS = ("Name", "State", "Where it is", "Gap", "Started", "     Size")
_WIDTHS = (16, 13, 22, 5, 10, 10)  # at 80 cells; what a wider window has more goes to the name and the place


@dataclass
class RunsRead(Message):
    """The runs as they are now."""

    summaries: list[RunSummary]

    def can_replace(self, message: Message) -> bool:
        """Only the newest counts."""
        return isinstance(message, RunsRead)


class RunsScreen(FrameScreen):
    """The list of runs; read again every two seconds."""

    AUTO_FOCUS = "#runs"
    ENTER = "Open the run"
    HELP = "All runs in the folder of runs, and those opened from elsewhere, with their current state."
    hint = 'Enter opens a run. "Lost": its process is gone; R resumes it.'
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("R", "resume_run", "Resume", id="runs-resume", tooltip="Resume a run that was stopped, failed or lost"),
        Binding(
            "C",
            "resume_with",
            "Change",
            show=False,
            id="runs-change",
            tooltip="Resume with other settings: more steps, say",
        ),
        Binding("N", "new_run", "New run", show=False, id="runs-new", tooltip="The wizard"),
        Binding("n", "new_like_this", "New like this", id="runs-like", tooltip="A new run with these settings"),
        Binding("space,x", "select", "Select", key_display="x", id="runs-select", tooltip="Select several, to delete"),
        Binding("slash", "filter", "Filter", key_display="/", id="runs-filter", tooltip="Only runs with these words"),
        Binding("D", "delete", "Delete", id="runs-delete", tooltip="Delete the run and everything in its folder; asks"),
        Binding("y", "copy", "Copy path", show=False, id="runs-copy", tooltip="Copy the path of the run's folder"),
        Binding("f5,r", "refresh_runs", "Refresh", show=False, id="runs-refresh", tooltip="Look again now"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.summaries: list[RunSummary] = []
        self.selected: set[Path] = set()
        self._words = ""
        self._look_now = threading.Event()
        self._read = False
        self._resumable = False
        self._widths: tuple[int, ...] = _WIDTHS

    def compose_content(self) -> Iterable[Widget]:
        """The table, and the chosen run in more words."""
        yield RowTable(id="runs", cursor_type="row", zebra_stripes=True, cell_padding=0)
        filter_field = Input(placeholder="words in name, models or data", compact=True, id="runs-filter-field")
        filter_field.hint = "Only runs with these words. Enter goes to them, Esc shows all."  # type: ignore[attr-defined]
        filter_field.display = False
        yield filter_field
        with Vertical(id="run-details", classes="pane"):
            yield Static(id="run-words", markup=False)

    def on_mount(self) -> None:
        """Begin to look for runs."""
        super().on_mount()
        self._lay_out()
        self.set_title("Runs", "looking…")
        self._look()

    def on_resize(self) -> None:
        """Wider columns in a wider window."""
        chosen = self.chosen
        self._lay_out()
        self._draw()
        if chosen is not None:
            self._move_to(chosen.path)

    def _move_to(self, path: Path) -> None:
        table = self._table
        keys = [row.key.value for row in table.ordered_rows]
        if str(path) in keys:
            table.move_cursor(row=keys.index(str(path)))

    def _lay_out(self) -> None:
        more = max(0, self.size.width - 80)
        name, state, where, *others = _WIDTHS
        self._widths = (name + min(more // 3, 24), state, where + min(more - more // 3, 50), *others)
        table = self._table
        table.clear(columns=True)
        for label, width in zip(_COLUMNS, self._widths, strict=True):
            table.add_column(label, key=label.strip(), width=width)

    def on_screen_resume(self) -> None:
        """Look again when coming back."""
        self.action_refresh_runs()

    @property
    def _table(self) -> DataTable[Content]:
        return self.query_one("#runs", DataTable)

    @property
    def chosen(self) -> RunSummary | None:
        """The run under the cursor."""
        table = self._table
        if not table.row_count or table.cursor_row >= table.row_count:
            return None
        key = table.coordinate_to_cell_key((table.cursor_row, 0)).row_key.value  # type: ignore[arg-type]
        return next((each for each in self.summaries if str(each.path) == key), None)

    @work(thread=True, exclusive=True, group="runs")
    def _look(self) -> None:
        worker, known = get_current_worker(), RunList()
        while not worker.is_cancelled and self.is_running:
            if self.app.screen_stack and self.is_current:
                self.post_message(RunsRead(known.refresh(self.tiny.clock())))
            self._look_now.wait(_POLL_SECONDS)
            self._look_now.clear()

    def on_unmount(self) -> None:
        """Let the thread end."""
        self._look_now.set()

    @on(RunsRead)
    def _show(self, message: RunsRead) -> None:
        self._read = True
        self.summaries = message.summaries
        self.selected &= {each.path for each in self.summaries}
        self._draw()

    def _draw(self) -> None:
        table, now = self._table, self.tiny.clock()
        shown = [each for each in self.summaries if self._words in _searched(each)]
        keys = [str(each.path) for each in shown]
        if [row.key.value for row in table.ordered_rows] == keys:
            for each in shown:
                for column, cell in zip(_COLUMNS, self._cells(each, now), strict=True):
                    table.update_cell(str(each.path), column.strip(), cell)
        else:
            chosen = self.chosen
            table.clear()
            for each in shown:
                table.add_row(*self._cells(each, now), key=str(each.path))
            if chosen is not None:
                self._move_to(chosen.path)
        running = sum(each.state.live for each in self.summaries)
        size = format_bytes(sum(each.size_bytes for each in self.summaries))
        count = len(self.summaries)
        figures = f"{count} run{'s' if count != 1 else ''} · {running} running · {size}"
        title = f"Runs in {_home_as_tilde(default_runs_path())}"
        self.set_title(title if len(title) + len(figures) + 4 <= self.size.width else "Runs", figures)
        self._draw_details()

    def _cells(self, each: RunSummary, now: float) -> list[Content]:
        name = ("+ " if each.path in self.selected else "  ") + each.name
        gap = "–" if each.gap_closed is None else format_percent(each.gap_closed) if each.gap_closed >= 0 else "worse"
        words = [
            name,
            each.where,
            gap.rjust(5),
            " " + format_when(each.created or None, now),
            format_bytes(each.size_bytes).rjust(9),
        ]
        name_width, _, where_width, *others = self._widths
        widths = (name_width - 1, where_width - 1, *others)
        cut = [Content(word).truncate(width, ellipsis=True) for word, width in zip(words, widths, strict=True)]
        return [cut[0], marked(each.state.mark, each.state.word), *cut[1:]]

    @on(DataTable.RowHighlighted)
    def _draw_details(self) -> None:
        chosen = self.chosen
        pane, words = self.query_one("#run-details"), self.query_one("#run-words", Static)
        if chosen is None:
            pane.border_title = Content("No run")
            nothing = "No run matches." if self._words else "There are no runs yet: N begins one."
            words.update(nothing if self._read else "looking…")
            return
        pane.border_title = Content(chosen.name)
        words.update("\n".join(_details(chosen, self.tiny.clock())))
        if chosen.state.resumable != self._resumable:
            self._resumable = chosen.state.resumable
            self.refresh_bindings()

    @on(DataTable.RowSelected)
    async def _open(self) -> None:
        if self.chosen is not None:
            await self.tiny.navigate(OpenRun(self.chosen.path))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Resume only what can be resumed."""
        if action == "resume_run" and self.is_mounted:
            return self.chosen is not None and self.chosen.state.resumable
        if action == "resume_with" and self.is_mounted:
            return self.chosen is not None and not self.chosen.state.live
        return True

    async def action_resume_run(self) -> None:
        """Continue the chosen run."""
        if self.chosen is None:
            return
        try:
            await self.tiny.navigate(StartRun(self.chosen.path))
        except TinyDistillError as error:
            self.tiny.tell(error)

    async def action_resume_with(self) -> None:
        """Resume the chosen run with settings that are asked for."""
        if self.chosen is not None:
            await self.tiny.navigate(ResumeWith(self.chosen.path))

    def ready_for(self, key: str) -> bool:
        """Keys speak of the runs that are listed."""
        return self._read

    def action_new_run(self) -> None:
        """The wizard."""
        self.app.switch_mode("wizard")

    async def action_new_like_this(self) -> None:
        """The wizard, beginning with what was asked of the chosen run."""
        asked = self.chosen.info.get("asked") if self.chosen is not None else None
        if isinstance(asked, dict):
            await self.tiny.navigate(AskFor(asked))

    def action_select(self) -> None:
        """Select the run under the cursor, or not."""
        if self.chosen is not None:
            self.selected ^= {self.chosen.path}
            self._draw()
            self._table.action_cursor_down()

    @work(group="dialog")
    async def action_delete(self) -> None:
        """Delete the selected runs, or the one under the cursor; asks first, refuses what is going."""
        chosen = [each for each in self.summaries if each.path in self.selected] or [
            each for each in (self.chosen,) if each
        ]
        going = [each.name for each in chosen if runs.is_live(each.path)]
        if going:
            self.say(f"{', '.join(going)}: a running run is not deleted. Open it and stop it first.", "wrong")
            return
        if not chosen:
            return
        size = format_bytes(sum(each.size_bytes for each in chosen))
        names = ", ".join(each.name for each in chosen[:4]) + (
            f" and {len(chosen) - 4} more" if len(chosen) > 4 else ""
        )
        kept = sorted({word for each in chosen for word in _lost_by_deleting(each.path)})
        answer = await self.app.push_screen_wait(
            ConfirmScreen(
                f"Delete {names}?",
                f"{size} in {_home_as_tilde(chosen[0].path) if len(chosen) == 1 else f'{len(chosen)} folders'}.\n"
                f"It cannot be undone{'; lost with it: ' + ', '.join(kept) if kept else ''}.",
                [Answer("keep", "Keep", "k"), Answer("delete", "Delete", "d", costs=True)],
            )
        )
        if answer == "delete":
            self._delete([each.path for each in chosen])

    @work(thread=True)
    def _delete(self, paths: list[Path]) -> None:
        for path in paths:
            try:
                runs.delete(path)
            except TinyDistillError as error:
                self.app.call_from_thread(self.tiny.tell, error)
        self._look_now.set()

    def action_filter(self) -> None:
        """Show only runs with these words."""
        field = self.query_one("#runs-filter-field", Input)
        field.display = True
        field.focus()

    @on(Input.Changed, "#runs-filter-field")
    def _typed(self, event: Input.Changed) -> None:
        self._words = event.value.lower()
        self._draw()

    @on(Input.Submitted, "#runs-filter-field")
    def _typed_out(self) -> None:
        self._table.focus()

    async def action_back(self) -> None:
        """Leave the filter, then go back to the wizard."""
        field = self.query_one("#runs-filter-field", Input)
        if field.display:
            field.value = ""
            field.display = False
            self._table.focus()
        else:
            self.app.switch_mode("wizard")

    def action_copy(self) -> None:
        """Copy the path of the run's folder."""
        if self.chosen is not None:
            self.tiny.copy(str(self.chosen.path), "the path", f": {self.chosen.path}")

    def action_refresh_runs(self) -> None:
        """Look again now."""
        self._look_now.set()


def _details(each: RunSummary, now: float) -> list[str]:
    settings = each.info.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    models = [_model_name(settings.get(name)) for name in ("teacher", "student")]
    lines = [f"{models[0]} → {models[1]} · {settings.get('data') or '?'}"]
    view, parts = each.recent, []
    if view.last_time is not None:
        parts.append(f"last event {format_duration(now - view.last_time)} ago")
    if each.state.live and view.pid:
        parts.append(f"pid {view.pid}")
    if (peak := view.peak_bytes()) is not None:
        budget = f" of {format_bytes(view.memory.budget_bytes)}" if view.memory.budget_bytes else ""
        parts.append(f"peak {format_bytes(peak)}{budget}")
    loss = view.metrics["loss"]
    if loss.last is not None:
        curve = spark([bucket.last for bucket in loss.buckets], 24)
        lines.append(f"loss {format_number(loss.last, 2)}  {curve}")
    return [lines[0], " · ".join(parts), *lines[1:], _home_as_tilde(each.path)]


def _model_name(value: object) -> str:
    """An id as it is, a folder by its last name."""
    name = str(value or "?")
    return Path(name).name if Path(name).is_absolute() else name


def _lost_by_deleting(path: Path) -> list[str]:
    names = {
        "cache": "the teacher's records",
        "checkpoints": "checkpoints",
        "student": "the student",
        "report.json": "the report",
    }
    return [words for name, words in names.items() if (path / name).exists()]


def _searched(each: RunSummary) -> str:
    settings = each.info.get("settings")
    values = [settings.get(name) for name in ("teacher", "student", "data")] if isinstance(settings, dict) else []
    return " ".join([each.name, each.state.word, *(str(value) for value in values)]).lower()


def _home_as_tilde(path: Path) -> str:
    home = str(places.home())
    return "~" + str(path)[len(home) :] if str(path).startswith(home + "/") else str(path)
