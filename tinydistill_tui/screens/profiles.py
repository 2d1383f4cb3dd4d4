"""Saved answers: use one, rename it, copy it, delete it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from textual import on, work
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widget import Widget
from textual.widgets import DataTable
from textual.worker import get_current_worker

from engine.disk.named_path import named_path
from engine.disk.runs import default_runs_path
from engine.errors import Problem, SettingsError, TinyDistillError
from engine.format import format_when
from engine.machine import hardware
from engine.machine.gpu_check import checked
from engine.machine.hardware import Hardware
from engine.settings import profiles
from tinydistill_tui.dialogs.confirm import Answer, ConfirmScreen
from tinydistill_tui.dialogs.name import NameScreen
from tinydistill_tui.navigation import GoTo
from tinydistill_tui.screens.base import FrameScreen, marked
from tinydistill_tui.view.plan_facts import cut_value, cut_words, home_as_tilde, shown
from tinydistill_tui.view.profile_facts import fit_of
from tinydistill_tui.widgets.excerpt import Excerpt
from tinydistill_tui.widgets.row_table import RowTable
from tinydistill_tui.work.draft import Draft


class ProfilesScreen(FrameScreen):
    """All profiles, and what the chosen one sets.

    Args:
        draft: takes the answers of the profile that is used.
    """

    AUTO_FOCUS = "#profiles"
    hint = "Only what you set is saved; the planner decides the rest on each machine."
    HELP = "A profile is a file of settings that you saved. The wizard and --profile begin with them."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", key_display="Esc", id="profiles-back", tooltip="Back to the start"),
        Binding("enter", "use", "Use", key_display="↵", id="profiles-use", tooltip="Begin with these settings"),
        Binding("n", "rename", "Rename", id="profiles-rename", tooltip="Give it another name"),
        Binding("c", "duplicate", "Duplicate", id="profiles-duplicate", tooltip="The same under another name"),
        Binding("e", "export", "Export", id="profiles-export", tooltip="Write its file somewhere else"),
        Binding("f5", "again", "Again", show=False, id="profiles-again", tooltip="Read the profiles again"),
        Binding("D", "delete", "Delete", id="profiles-delete", tooltip="Delete the profile; asks"),
    ]

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self.draft = draft
        self._values: dict[str, dict[str, Any] | TinyDistillError] = {}
        self._machine: Hardware | None = None

    def compose_content(self) -> Iterable[Widget]:
        """The table, and what the chosen one sets."""
        yield RowTable(id="profiles", cursor_type="row", zebra_stripes=True, cell_padding=0)
        yield Excerpt(id="profile-words", classes="pane")

    def on_mount(self) -> None:
        """Read them."""
        table = self._table
        for key, label, width in (("name", " Name", 20), ("for", "For", 40), ("sets", "Sets", 6), ("used", "Used", 10)):
            table.add_column(label, key=key, width=width)
        title = f"Profiles in {home_as_tilde(str(profiles.folder()))}"
        self.set_title(title if len(title) + 2 <= self.app.size.width else "Profiles")
        self.read()
        self._measure()

    @property
    def _table(self) -> DataTable[Content]:
        return self.query_one("#profiles", DataTable)

    @property
    def chosen(self) -> str | None:
        """Name of the profile under the cursor."""
        names = list(self._values)
        row = self._table.cursor_row
        return names[row] if 0 <= row < len(names) else None

    def action_again(self) -> None:
        """Read the files again: another program may have written some."""
        self.read()

    def read(self) -> None:
        """Read every profile again."""
        self._values.clear()
        for name in profiles.names():
            try:
                self._values[name] = profiles.load(name)
            except TinyDistillError as error:
                self._values[name] = error
        table = self._table
        row = table.cursor_row
        table.clear()
        for name, values in self._values.items():
            about, count = ("cannot be read", "")
            if not isinstance(values, TinyDistillError):
                about, count = _about(values), str(len(values)).rjust(4)
            moment = profiles.used_at(name)
            last = "never" if moment is None else format_when(moment, self.tiny.clock())
            cells = (" " + cut_words(name, 18), cut_words(about, 38), count, last)
            table.add_row(*map(Content, cells), key=name)
        table.move_cursor(row=min(row, max(0, len(self._values) - 1)))
        self._draw()

    @on(DataTable.RowHighlighted)
    def _draw(self) -> None:
        words = self.query_one("#profile-words", Excerpt)
        if self.chosen is None:
            words.border_title = "No profile"
            words.say("No profile is saved yet: p on the plan saves your settings as one.")
            return
        values = self._values[self.chosen]
        words.border_title = Content(f"{self.chosen} sets")
        if isinstance(values, TinyDistillError):
            words.say(values.paragraph())
            return
        lines = []
        for name, value in values.items():
            fit = fit_of(name, value, self._machine) if self._machine is not None else None
            note = marked(*fit) if fit is not None else Content("")
            lines.append(Content.assemble(name.ljust(22), " ", cut_value(shown(name, value), 27).ljust(28), note))
        words.say(Content("\n").join(lines))

    @on(DataTable.RowSelected)
    def _selected(self) -> None:
        self.call_later(self.action_use)

    async def action_use(self) -> None:
        """Begin a run with these settings."""
        values = self._values[self.chosen] if self.chosen is not None else None
        if values is None:
            return
        if isinstance(values, TinyDistillError):
            self.say("This profile cannot be used; the reason is above.", "wrong")
            return
        assert self.chosen is not None
        profiles.used(self.chosen, self.tiny.clock())
        self.draft.replace(Draft.of(values, f"from the profile {self.chosen}"))
        await self.tiny.navigate(GoTo("models", self.draft, instead=True))

    @work(thread=True, exclusive=True, group="measure")
    def _measure(self) -> None:
        machine = checked(hardware.detect(default_runs_path()))
        if not get_current_worker().is_cancelled:
            self.app.call_from_thread(self._measured, machine)

    def _measured(self, machine: Hardware) -> None:
        if self.is_attached:
            self._machine = machine
            self._draw()

    @work(group="dialog")
    async def action_export(self) -> None:
        """Write the profile's file somewhere else, to give it away."""
        name = self.chosen
        if name is None:
            return
        path = await self.app.push_screen_wait(
            NameScreen(f"Write {name} to", f"{name}.toml", lambda path: _export(name, path))
        )
        if path is not None:
            self.notify(f"Written: {named_path(path).absolute()}", markup=False)

    @work(group="dialog")
    async def action_rename(self) -> None:
        """Another name."""
        name = self.chosen
        if name is None:
            return

        def act(new: str) -> None:
            if new != name:
                profiles.rename(name, new)

        if await self.app.push_screen_wait(NameScreen(f"Another name for {name}", name, act)):
            self.read()

    @work(group="dialog")
    async def action_duplicate(self) -> None:
        """The same under another name."""
        name = self.chosen
        values = self._values[name] if name is not None else None
        if name is None or values is None or isinstance(values, TinyDistillError):
            return
        if await self.app.push_screen_wait(
            NameScreen(f"A copy of {name}", f"{name}-copy", lambda new: _save_new(new, values))
        ):
            self.read()

    @work(group="dialog")
    async def action_delete(self) -> None:
        """Delete it; asks."""
        name = self.chosen
        if name is None:
            return
        answer = await self.app.push_screen_wait(
            ConfirmScreen(
                f"Delete {name}?",
                "Only the saved settings are deleted. Runs and models stay.",
                [Answer("keep", "Keep", "k"), Answer("delete", "Delete", "d", costs=True)],
            )
        )
        if answer == "delete":
            try:
                profiles.delete(name)
            except OSError as error:
                self.say(f"{name} could not be deleted: {error.strerror or error}.", "wrong")
            self.read()


def _export(name: str, path: str) -> None:
    target = named_path(path)
    if target.exists():
        raise SettingsError([Problem("file", path, "there is a file of this name already")], "")
    target.write_bytes(profiles.path_of(name).read_bytes())


def _save_new(name: str, values: dict[str, Any]) -> None:
    if name in profiles.names():
        raise SettingsError([Problem("profile", name, "there is a profile of this name already")], "")
    profiles.save(name, values)


def _about(values: dict[str, Any]) -> str:
    if values.get("demo"):
        return "the demo"
    models = [home_as_tilde(str(values.get(name) or "planner's pick")) for name in ("teacher", "student")]
    return f"{models[0]} → {models[1]}, {home_as_tilde(str(values.get('data') or 'python-docs'))}"
