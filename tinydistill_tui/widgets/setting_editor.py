"""The plan's table of settings, and the box below it: one setting to change, its reason, and what others would take."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Input
from textual.worker import get_current_worker

from engine.machine.hardware import Hardware
from engine.planner import Plan, plan
from engine.settings.config import SETTINGS, RunConfig
from tinydistill_tui.view.marks import MARK_STYLES, MARKS
from tinydistill_tui.view.plan_facts import Row, cut_value, cut_words, row_sentence, typed
from tinydistill_tui.view.tries import Try, choices_of, tried, tries_words, values_around
from tinydistill_tui.widgets.excerpt import Excerpt
from tinydistill_tui.widgets.field import ChoiceLine, TextField
from tinydistill_tui.widgets.once import after
from tinydistill_tui.widgets.row_table import RowTable

WIDTHS = {"mark": 2, "field": 23, "value": 15, "by": 9}
TRY_AFTER_SECONDS = 0.3
# Settings of which another value takes neither more memory nor more time.
_COST_NOTHING = frozenset({"seed", "threads", "trust_remote_code", "learning_rate", "weight_decay", "clip_norm"})
_KEYS = "↵ keeps it · Esc takes it back"


class SettingsTable(RowTable):
    """The table: Enter on a row changes it, the arrows to the sides take the next value."""

    hint = "These are estimates. No model is loaded until you press s."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Edit", key_display="↵", id="plan-edit", tooltip="Change the setting"),
        Binding("left", "screen.step(-1)", "Less", show=False, id="plan-less", tooltip="Half, or the previous choice"),
        Binding("right", "screen.step(1)", "More", show=False, id="plan-more", tooltip="Twice, or the next choice"),
    ]

    @property
    def why_width(self) -> int:
        """Return the room left for the reasons."""
        return max(10, self.app.size.width - 4 - sum(WIDTHS.values()))

    def on_mount(self) -> None:
        """The columns."""
        for key, label in (("mark", ""), ("field", "Setting"), ("value", "Value"), ("by", "By")):
            self.add_column(label, key=key, width=WIDTHS[key])
        self.add_column("Why", key="why", width=self.why_width)

    def fit_width(self) -> None:
        """The reasons take what is left."""
        for column in self.ordered_columns:
            if column.key.value == "why":
                column.width = self.why_width

    def show(self, rows: list[Row], before: list[Row]) -> None:
        """Show these rows in place of those before; the cursor stays on its setting."""
        cells = [_cells(row, self.why_width) for row in rows]
        if [row.field for row in rows] == [row.field for row in before]:
            for row, row_cells in zip(rows, cells, strict=True):
                for column, cell in zip((*WIDTHS, "why"), row_cells, strict=True):
                    self.update_cell(row.field, column, cell)
            return
        chosen = before[self.cursor_row].field if 0 <= self.cursor_row < len(before) else None
        self.clear()
        for row, row_cells in zip(rows, cells, strict=True):
            self.add_row(*row_cells, key=row.field)
        names = [row.field for row in rows]
        if chosen in names:
            self.move_cursor(row=names.index(chosen))


class SettingEditor(Vertical):
    """The box below the table."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._row: Row | None = None
        self._editing = False
        self._tries = ""
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """A line of text, or a line of choices; and words."""
        yield TextField("", id="edit-text")
        yield ChoiceLine("", [], "", id="edit-choice")
        yield Excerpt(id="edit-words")

    def show(self, row: Row, text: str, *, editing: bool) -> None:
        """Show a setting.

        Args:
            row: as it stands in the table.
            text: what the field begins with.
            editing: whether the user is at it, so that what is typed stays.
        """
        if self._row is None or (row.field, row.value) != (self._row.field, self._row.value):
            self._tries = ""
        self._row, self._editing = row, editing
        self.set_class(editing, "-editing")
        info = SETTINGS[row.field]
        self.border_title = Content(f"{row.field} · {info.accepted()}")
        chosen = choices_of(row.field)
        field, line = self.query_one("#edit-text", TextField), self.query_one("#edit-choice", ChoiceLine)
        field.display, line.display = editing and not chosen, editing and bool(chosen)
        if not editing:
            field.setting = row.field
            with field.prevent(Input.Changed):
                field.value = text
            line.offer(row.field, chosen, text)
        self._draw_words()

    def _draw_words(self) -> None:
        row, tries = self._row, self._tries
        if row is None or not self.query("#edit-words"):  # what a thread brings may come while the screen is taken down
            return
        self.border_subtitle = Content(_KEYS if self._editing else f"←→ {tries}" if tries else "")
        words = f"{row.why}\n{tries}" if self._editing else f"{SETTINGS[row.field].help}.\n{row_sentence(row)}"
        self.query_one("#edit-words", Excerpt).say(words.strip("\n"))

    def try_others(self, setting: str, value: object, config: RunConfig, machine: Hardware | None) -> None:
        """Say what other values would take, once the user rests on the setting.

        Args:
            setting: the one that is shown.
            value: its value in the plan.
            config: everything that was asked for.
            machine: where it would run.
        """
        if self._timer is not None:
            self._timer.stop()
        if setting not in _COST_NOTHING:
            self._timer = after(self, TRY_AFTER_SECONDS, lambda: self._try(setting, value, config, machine))

    @work(thread=True, exclusive=True, group="try")
    def _try(self, setting: str, value: object, config: RunConfig, machine: Hardware | None) -> None:
        worker = get_current_worker()

        def make_plan(other: RunConfig) -> Plan:
            return plan(other, hardware=machine, strict=False)

        present = typed(setting, value)
        found = tried(setting, values_around(setting, value), config, make_plan, lambda: worker.is_cancelled)
        if not worker.is_cancelled:
            self.app.call_from_thread(self._were_tried, setting, found, present)

    def _were_tried(self, setting: str, found: list[Try], present: str) -> None:
        if self._row is not None and self._row.field == setting and self.is_attached:
            self._tries = tries_words(found, self.size.width - 8, present)
            self._draw_words()

    @property
    def control_shown(self) -> TextField | ChoiceLine:
        """The widget that takes the keys."""
        field = self.query_one("#edit-text", TextField)
        return field if field.display else self.query_one("#edit-choice", ChoiceLine)


def _cells(row: Row, width: int) -> list[Content]:
    yours = row.by == "you"
    style = MARK_STYLES["yours"] if yours or row.was else ""
    why = f"was {row.was}; {row.why}" if row.was else row.why
    return [
        Content.styled(MARKS["yours"] if yours else " ", style),
        Content(row.field),
        Content.styled(cut_value(row.value, WIDTHS["value"] - 1), f"bold {style}".strip()),
        Content.styled(row.by, MARK_STYLES["yours"] if yours else ""),
        Content.styled(cut_words(why, width), "$text-quiet"),
    ]
