"""Step 4: every setting with its value, who chose it and why; what it takes; and the start.

The planner is asked again after each key, in a thread; its answer is what is shown. It never changes the user's values:
Del gives one back to the planner, u takes the last change back.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from textual import events, on, work
from textual.binding import ActiveBinding, Binding, BindingType
from textual.widget import Widget
from textual.widgets import DataTable, Input, Static

from engine.errors import TinyDistillError
from engine.planner import Plan
from engine.planner.summary import cautions, summary
from engine.run import launch
from engine.settings import profiles
from engine.settings.command import command_line
from engine.settings.config import SETTINGS
from tinydistill_tui.dialogs.name import NameScreen
from tinydistill_tui.navigation import StartRun
from tinydistill_tui.screens.base import marked
from tinydistill_tui.screens.planning import PlanChanged, Planning
from tinydistill_tui.screens.step import StepScreen, bad_value
from tinydistill_tui.view import plan_facts
from tinydistill_tui.view.plan_facts import Row
from tinydistill_tui.view.tries import stepped
from tinydistill_tui.widgets.excerpt import Excerpt
from tinydistill_tui.widgets.field import ChoiceLine, TextField
from tinydistill_tui.widgets.memory_bars import MemoryBars
from tinydistill_tui.widgets.setting_editor import SettingEditor, SettingsTable
from tinydistill_tui.work.draft import Draft

_NEEDS_THE_PLAN = frozenset({"left", "right", "h", "l", "enter", "down", "up", "j", "k", "s", "a", "b", "y", "f6"})
_CHANGES = frozenset({"start", "give_back", "undo", "profile", "filter", "remedy", "step", "back", "again"})
"""Actions that would change or leave the answers while a run is made of them."""


class PlanScreen(StepScreen):
    """The plan."""

    NUMBER = 4
    GROUP = "Plan"
    AUTO_FOCUS = "#settings"
    hint = SettingsTable.hint
    HELP = (
        "The plan: predicted memory, disk and time, and a reason for each setting. Left and right halve or double a "
        "value, Enter lets you type one. The planner answers at once and marks the values that it changed. It never "
        "changes your own values; Del returns one to the planner."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "start", "Start", id="plan-start", tooltip="Start the run; refused while it does not fit"),
        Binding("delete,backspace", "give_back", "Planner's", key_display="Del", id="plan-give-back",
                tooltip="Let the planner choose the setting again"),
        Binding("u", "undo", "Undo", id="plan-undo", tooltip="Undo the last change"),
        Binding("f6", "all", "All", key_display="F6", id="plan-all", tooltip="Every setting, or the first ones"),
        Binding("p", "profile", "Profile", id="plan-profile", tooltip="Save what you set as a profile"),
        Binding("y", "copy", "Copy", show=False, id="plan-copy", tooltip="Copy the same run as a command line"),
        Binding("slash", "filter", "Filter", show=False, id="plan-filter", tooltip="Only settings with these words"),
        Binding("a", "remedy(0)", "First remedy", show=False, id="plan-remedy-a",
                tooltip="If the plan does not fit: apply the first remedy"),
        Binding("b", "remedy(1)", "Second remedy", show=False, id="plan-remedy-b",
                tooltip="If the plan does not fit: apply the second remedy"),
        Binding("f5", "again", "Again", show=False, id="plan-again", tooltip="Look at the machine and plan again"),
    ]  # fmt: skip

    def __init__(self, draft: Draft) -> None:
        super().__init__(draft)
        self.everything = False
        self.editing = False
        self.planning = Planning(self)
        self._rows: list[Row] = []
        self._words = ""
        self._to_edit = ""
        self._box_opens = False
        self._starting = False

    def compose_content(self) -> Iterable[Widget]:
        """Compose the predictions, the settings, and the selected setting."""
        yield Excerpt(id="in-words")
        yield MemoryBars(id="memory-bars")
        yield Static(id="cost", markup=False)
        yield Static(id="parts", markup=False)
        yield Excerpt(id="fits")
        yield SettingsTable(id="settings", cursor_type="row", zebra_stripes=True, cell_padding=0, show_header=True)
        filter_field = Input(placeholder="words in a setting's name or help", compact=True, id="settings-filter")
        filter_field.hint = "Only settings with these words. Enter goes to them, Esc shows all."  # type: ignore[attr-defined]
        filter_field.display = False
        yield filter_field
        yield SettingEditor(id="editor", classes="pane")

    def on_mount(self) -> None:
        """Ask the planner, and measure the machine if it was not measured."""
        if self.draft.plan is not None and self.planning.machine is not None:
            self._draw()
        self.planning.at_once()

    @property
    def _table(self) -> SettingsTable:
        return self.query_one(SettingsTable)

    def on_resize(self, event: events.Resize) -> None:
        """The reasons take what is left; a box that was hidden for a moment has the cursor again."""
        self._table.fit_width()
        self._draw()
        self.call_after_refresh(self._back_to_the_box)

    def _back_to_the_box(self) -> None:
        control = self.query_one(SettingEditor).control_shown
        if self.editing and self.focused is not control:
            control.focus()

    @property
    def chosen(self) -> Row | None:
        """The setting under the cursor."""
        row = self._table.cursor_row
        return self._rows[row] if 0 <= row < len(self._rows) else None

    # asking the planner

    @on(PlanChanged)
    def _planned(self, message: PlanChanged) -> None:
        if self.is_there and self.planning.take(message):
            self._draw()
            self._try_others()

    @property
    def up_to_date(self) -> bool:
        """Return whether what is shown belongs to what was typed."""
        return self.planning.up_to_date

    def ready_for(self, key: str) -> bool:
        """A value is stepped from the plan, and a run is started with it; a box that was asked for opens first."""
        waits_for_the_plan = bool(self._to_edit) and not self.up_to_date
        if not self.editing and (self._box_opens or waits_for_the_plan):
            return False
        return self.editing or self.up_to_date or key not in _NEEDS_THE_PLAN

    def working_bindings(self) -> dict[str, ActiveBinding]:
        """The keys that work now; Enter in the box keeps its value."""
        found = super().working_bindings()
        enter = found.get("enter")
        if enter is not None and enter.binding.action in ("next", "submit"):
            keep = dataclasses.replace(enter.binding, description="Keep", tooltip="Keep the value in the box")
            found["enter"] = enter._replace(binding=keep)
        return found

    # drawing

    def _draw(self) -> None:
        planned, machine = self.draft.plan, self.planning.machine
        if planned is not None and machine is not None:
            words = plan_facts.whole_sentences(summary(planned), self.size.width - 2)
            self.query_one("#in-words", Excerpt).say(words)
            self.query_one(MemoryBars).needs = tuple(plan_facts.needs(planned, machine))
            self.query_one("#cost", Static).update(plan_facts.cost(planned, machine, self.size.width - 2))
            self.query_one("#parts", Static).update(plan_facts.parts(planned))
            self._draw_table(planned)
        if self.planning.error is not None:
            self.query_one(MemoryBars).instead = "There is no plan for these answers; the reason is below."
            self._say_fit("wrong", plan_facts.error_words(self.planning.error))
        elif planned is not None and machine is not None:
            mark, words = plan_facts.verdict(planned, machine)
            if mark == "good":
                careful = cautions(planned)
                mark, words = "look" if careful else mark, f"{words} s starts it, y copies it as a command."
                more = ["(One more in step 3.)"] if len(careful) > 1 else []  # room for the settings
                words = " ".join([*careful[:1], *more, words])
            self._say_fit(mark, words)
        self._draw_editor()

    def _say_fit(self, mark: str, words: str) -> None:
        self.query_one("#fits", Excerpt).say(marked(mark, words))

    def _draw_table(self, planned: Plan) -> None:
        everything = self.everything or bool(self._words)
        rows = plan_facts.rows(planned, everything=everything, before=self.planning.before)
        rows = plan_facts.with_unplanned(rows, self.planning.unplanned)
        rows = [row for row in rows if self._words in f"{row.field} {SETTINGS[row.field].help}".lower()]
        before, self._rows = self._rows, rows
        self._table.show(rows, before)
        if self._to_edit and not self.editing:
            # Taken at once: a second drawing before the next refresh would open the box again after it was closed.
            setting, self._to_edit = self._to_edit, ""
            self._box_opens = self.call_after_refresh(self._open_box, setting)

    @on(DataTable.RowHighlighted)
    def _highlighted(self) -> None:
        self._draw_editor()
        self._try_others()

    def _draw_editor(self) -> None:
        row = self.chosen
        if row is None or not self.is_mounted:
            return
        self.query_one(SettingEditor).show(row, self._text_of(row), editing=self.editing)

    def _try_others(self) -> None:
        """Find out what other values of the chosen setting would take, once the user rests on it."""
        row, planned = self.chosen, self.draft.plan
        if row is None or planned is None or self.planning.error is not None or not self.up_to_date:
            return
        value = getattr(planned.settings, SETTINGS[row.field].field)
        self.query_one(SettingEditor).try_others(row.field, value, self.draft.good_config(), self.planning.machine)

    def _text_of(self, row: Row) -> str:
        planned = self.draft.plan
        if row.field in self.draft.answers or planned is None:
            return self.draft.get(row.field)
        return plan_facts.typed(row.field, getattr(planned.settings, SETTINGS[row.field].field))

    # editing

    def edit(self, setting: str) -> None:
        """Put the cursor on a setting, wherever it is, and begin to change it."""
        if self.draft.plan is None or self.editing:
            self._to_edit = setting
            return
        self._to_edit = ""
        self._words = ""
        names = [row.field for row in self._rows]
        if setting not in names:
            self.everything = True
            self._draw()
            names = [row.field for row in self._rows]
        if setting in names:
            self._table.move_cursor(row=names.index(setting))
            self.action_edit()

    def _open_box(self, setting: str) -> None:
        self._box_opens = False
        self.edit(setting)

    def action_step(self, step: int) -> None:
        """Half or twice as much, or the next choice; the bars move at once."""
        row, planned = self.chosen, self.draft.plan
        if row is None or planned is None or self.editing:
            return
        text = stepped(row.field, getattr(planned.settings, SETTINGS[row.field].field), step)
        if text is None:
            self.say(f"{row.field} takes {SETTINGS[row.field].accepted()}; Enter lets you type.", "look")
        elif self.up_to_date:  # else a held key would run ahead of the planner
            self.draft.remember()
            self._set({row.field: text})

    def action_remedy(self, number: int) -> None:
        """Take what would make it fit."""
        planned, machine = self.draft.plan, self.planning.machine
        if planned is None or machine is None or self.planning.error is not None or not self.up_to_date:
            return
        found = plan_facts.remedies(planned, machine)
        if number < len(found):
            self.draft.remember()
            self._set(found[number])
            listed = ", ".join(f"{name} {text}" for name, text in found[number].items())
            self.say(f"Set: {listed}; u undoes it.", "good")

    def _set(self, answers: dict[str, str]) -> None:
        for name, text in answers.items():
            self.draft.set(name, text)
        self.draft.save()
        self.planning.at_once()

    @on(DataTable.RowSelected)
    def _row_selected(self) -> None:
        self.action_edit()

    def action_edit(self) -> None:
        """Change the setting under the cursor."""
        if self.chosen is None or self.editing or self._starting:
            return
        self.draft.remember()
        self._draw_editor()  # its fields begin with what is there
        self.editing = True
        self._draw_editor()
        control = self.query_one(SettingEditor).control_shown
        control.focus()
        if isinstance(control, TextField):
            control.select_all()

    def action_next(self) -> None:  # type: ignore[override]
        """Enter within the box keeps what is there, if it is good."""
        row = self.chosen
        if row is None or not self.editing:
            return
        sentence = self.draft.problem(row.field)
        if sentence is not None:
            self.land_on(row.field, bad_value(row.field, self.draft.get(row.field), sentence))
            return
        self._leave_editor()

    def _leave_editor(self) -> None:
        self.editing = False
        self._draw_editor()
        self._table.focus()
        self.draft.save()

    def changed(self, setting: str) -> None:
        """Ask the planner."""
        self.planning.soon()

    @on(ChoiceLine.Changed)
    def _choice(self, event: ChoiceLine.Changed) -> None:
        event.stop()

    async def action_back(self) -> None:
        """Out of the box with what was there before, out of the filter, or back to the data."""
        field = self.query_one("#settings-filter", Input)
        if self.editing:
            self.draft.undo()
            self._leave_editor()
            self.planning.at_once()
        elif field.display:
            field.value = ""
            field.display = False
            self._table.focus()
        else:
            await super().action_back()

    def action_filter(self) -> None:
        """Only settings with these words."""
        field = self.query_one("#settings-filter", Input)
        field.display = True
        field.focus()

    @on(Input.Changed, "#settings-filter")
    def _filtered(self, event: Input.Changed) -> None:
        event.stop()
        self._words = event.value.strip().lower()
        self._draw()

    @on(Input.Submitted, "#settings-filter")
    def _filter_done(self, event: Input.Submitted) -> None:
        event.stop()
        self._table.focus()

    def action_give_back(self) -> None:
        """Let the planner choose again."""
        row = self.chosen
        if row is None or self.editing or row.field not in self.draft.answers:
            return
        self.draft.remember()
        self.draft.set(row.field, "")
        self.draft.save()
        self.say(f"{row.field} is chosen by the planner again; u undoes it.", "good")
        self.planning.at_once()

    def action_undo(self) -> None:
        """Undo the last change."""
        if self.editing:
            return
        self.say("The last change is undone." if self.draft.undo() else "There is nothing to undo.")
        self.draft.save()
        self.planning.at_once()

    def action_all(self) -> None:
        """Every setting, or those that matter most."""
        self.everything = not self.everything
        self._draw()
        shown = f"{len(self._rows)} setting{'s' if len(self._rows) != 1 else ''}"
        self.say(f"{shown}; F6 shows {'fewer' if self.everything else 'all'}.")

    def action_again(self) -> None:
        """Look at the machine again."""
        self.planning.again()
        self.say("Looking at this machine again; the plan above follows.")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While a setting is changed, the letters belong to it."""
        if action in _CHANGES and self._starting:
            return False
        if action in ("start", "give_back", "undo", "all", "profile", "copy", "filter", "remedy"):
            return not self.editing
        return True

    # leaving with something

    def action_copy(self) -> None:
        """Copy the same run as a command line."""
        words = command_line(self.draft.asked_config())
        self.tiny.copy(words, "the command", f": {words}")

    @work(group="dialog")
    async def action_profile(self) -> None:
        """Save what was set as a profile."""
        name = await self.app.push_screen_wait(
            NameScreen("Save as a profile", "", lambda name: profiles.save(name, self.draft.good_config().asked()))
        )
        if name is not None:
            self.notify(f"Saved. Use it: tinydistill-tui --profile {name}", markup=False)

    @work(exclusive=True, group="start")
    async def action_start(self) -> None:
        """Make the run and start it, unless it does not fit."""
        if self._starting:
            return
        if not self.up_to_date:
            self.say("One moment, the planner is still computing…", "look")
            return
        planned = self.draft.plan
        if self.planning.error is not None or planned is None or planned.misfit is not None:
            reason = "it does not fit" if self.planning.error is None else "a setting is invalid"
            self.say(f"Not started: {reason}. The lines above say what fits.", "wrong")
            return
        self._starting = True
        self.draft.save()
        self.say("Making the run…", "live")
        try:
            run = await asyncio.to_thread(launch.new_run, self.draft.good_config(), self.planning.machine)
            self.draft.started = True
            await self.tiny.navigate(StartRun(run.path))
            Draft().save()  # these answers are a run now, also for a wizard that is opened after this one
        except TinyDistillError as error:
            self.draft.started = False
            self._say_fit("wrong", error.paragraph())
            self.say("Not started; your answers are kept.", "wrong")
        except OSError as error:
            self.draft.started = False
            reason = error.strerror or str(error)
            self._say_fit("wrong", f"The run could not be made: {reason}. Free some room, or set another output_dir.")
            self.say("Not started; your answers are kept.", "wrong")
        finally:
            self._starting = False
