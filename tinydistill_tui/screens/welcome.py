"""Step 1: this machine, what a run may take of it, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from engine.disk.runs import default_runs_path
from engine.errors import TinyDistillError
from engine.format import format_bytes
from engine.machine import hardware
from engine.machine.gpu_check import checked
from engine.machine.hardware import GpuUser, Hardware
from engine.planner.budget import FREE_SHARE
from engine.settings import profiles
from tinydistill_tui.dialogs.details import DetailsScreen
from tinydistill_tui.navigation import GoTo, OpenRun, StartRun
from tinydistill_tui.screens.step import StepScreen, bad_value
from tinydistill_tui.terminal.opening import PURPOSE
from tinydistill_tui.view.marks import MARKS, bar
from tinydistill_tui.view.plan_facts import cut_words, home_as_tilde
from tinydistill_tui.widgets.field import ChoiceLine, TextField
from tinydistill_tui.work import runs
from tinydistill_tui.work.draft import Draft, budget_text
from tinydistill_tui.work.runs import RunSummary

_MOST_RUNS = 2
RUNS_SECONDS = 2.0  # between two looks at the runs in the menu
_BAR = 12
_MOST_PROGRAMS = 3
BEGIN = "Everything has a default. Press Enter three times and then s."
_ABOUT = {
    "profiles": "Settings that were saved under a name: Enter shows them.",
    "runs": "Enter shows every run with its state and its size.",
    "attach": "Enter shows the run while it works.",
    "resume": "Enter resumes the run from where it stopped.",
}
"""What Enter does with a line of the menu; all others lead through the steps."""


@dataclass
class Measured(Message):
    """The machine's hardware, the runs that can be resumed, and whether there are any runs."""

    machine: Hardware
    going: list[RunSummary]
    has_runs: bool


class WelcomeScreen(StepScreen):
    """The start."""

    NUMBER = 1
    GROUP = "Start"
    ENTER = "Do it"
    AUTO_FOCUS = "#menu"
    hint = BEGIN
    HELP = (
        "TinyDistill teaches a small language model with a big one, on this machine. The teacher reads the text once "
        "and its answers are kept on disk. Then it is removed from memory, and the student learns from the answers."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave", "Quit", id="leave", tooltip="Leave; the answers are kept for next time"),
        Binding("escape", "back", "Menu", show=False, id="welcome-back", tooltip="Back to the menu"),
        Binding(
            "r,f5",
            "measure",
            "Measure again",
            key_display="r",
            id="welcome-measure",
            tooltip="Measure the machine again",
        ),
        Binding("d", "details", "Details", id="welcome-details", tooltip="Machine, versions and folders, to copy"),
    ]

    def __init__(self) -> None:
        super().__init__(Draft())
        self.machine: Hardware | None = None
        self._going: list[RunSummary] = []
        self._first_look = True
        self._go_to_the_run = False
        self._note = ""

    def compose_content(self) -> Iterable[Widget]:
        """The machine, the budget, the menu."""
        draft = Draft.of(self.tiny.config_values, self.tiny.source) if self.tiny.config_values else Draft.load()
        self.draft.replace(draft)
        yield Static(PURPOSE, id="purpose", markup=False)
        yield Static("This machine", classes="heading")
        yield Static("measuring…", id="machine", markup=False)
        with Horizontal(classes="row", id="row-device"):
            yield Static("Run on", classes="label")
            yield ChoiceLine("device", [("", "the planner's choice")], self.draft.get("device"))
        yield Static("Budget: the most that a run may take", classes="heading")
        for setting, label in (("memory_budget", "GPU"), ("ram_budget", "RAM")):
            with Horizontal(classes="row", id=f"row-{setting}"):
                yield Static(label, classes="label", id=f"label-{setting}")
                yield TextField(
                    setting,
                    self.draft.get(setting),
                    classes="half",
                    hint="A size: 3 (GiB), 700MB, 80 % of free memory; empty: the planner's choice.",
                )
                yield Static(id=f"share-{setting}", classes="note", markup=False)
        yield Static("What would you like to do?", classes="heading")
        yield OptionList(id="menu", compact=True, markup=False)

    def on_mount(self) -> None:
        """Look at the machine while the menu is there already."""
        self.query_one("#row-memory_budget").display = False
        self.query_one("#row-device").display = False
        self._draw_menu()
        self.action_measure()
        self.set_interval(RUNS_SECONDS, self._look_at_runs)
        self._note, self.draft.note = self.draft.note, ""
        self.hint = self._note or self.hint  # a note stays above the keys, as long as nothing else is said there

    def on_screen_resume(self) -> None:
        """Back from a run or from the steps: the menu may be another one."""
        if self.draft.started:  # the answers are a run now; a new one begins from none
            self.tiny.config_values = {}
            self.draft.replace(Draft())
            self.draft.save()
            self._go_to_the_run = True
        if self.machine is not None:
            for field in self.query(TextField):
                with field.prevent(Input.Changed):
                    field.value = self.draft.get(field.setting)
            self._draw_menu()
            self.action_measure()

    @work(thread=True, exclusive=True, group="hardware")
    def action_measure(self) -> None:
        """Look at the machine and at the runs again."""
        worker = get_current_worker()
        machine = checked(hardware.detect(default_runs_path()), ask=False)  # the plan will ask
        going, has_runs = _runs_to_go_on_with(self.tiny.clock())
        if not worker.is_cancelled:
            self.post_message(Measured(machine, going, has_runs))

    @on(Measured)
    def _measured(self, message: Measured) -> None:
        if not self.is_there:
            return
        self.machine = self.tiny.machine = message.machine
        self.query_one("#machine", Static).update("\n".join(machine_lines(message.machine, self.size.width - 2)))
        self._offer_devices(message.machine)
        self._draw_budgets()
        self._show_going(message.going)
        if self._go_to_the_run:
            self._go_to_the_run = False
            self.query_one("#menu", OptionList).highlighted = 0
            self._go_to_the_likeliest(message.has_runs)
        if self._first_look and self.is_current:
            self._go_to_the_likeliest(message.has_runs)
        self._first_look = False

    def _show_going(self, going: list[RunSummary]) -> None:
        """The runs in the menu, where they are now."""
        shown = [[(each.path, state_words(each)) for each in runs_shown] for runs_shown in (going, self._going)]
        if shown[0] != shown[1]:
            self._going = going
            self._draw_menu()

    def _look_at_runs(self) -> None:
        if self.is_current and self.machine is not None:
            self._see_runs()

    @work(thread=True, exclusive=True, group="runs")
    def _see_runs(self) -> None:
        worker = get_current_worker()
        going, _ = _runs_to_go_on_with(self.tiny.clock())
        if not worker.is_cancelled:
            self.app.call_from_thread(self._show_going, going)

    def _offer_devices(self, machine: Hardware) -> None:
        """Each GPU and the processor, where there is something to choose from."""
        self.query_one("#row-device").display = bool(machine.gpus)
        devices = [gpu.device for gpu in machine.gpus]
        asked = self.draft.get("device")
        others = [(name, name) for name in (*devices, "cpu")]
        if asked and asked not in (*devices, "cpu"):
            others.append((asked, asked))
        self.query_one("#choice-device", ChoiceLine).offer("device", [("", "planner's choice"), *others], asked)

    def _draw_budgets(self) -> None:
        """Update the fields' placeholders, and the memory that a budget is a share of."""
        assert self.machine is not None
        is_gpu = bool(self.machine.gpus) and self.draft.get("device") != "cpu"
        self.query_one("#row-memory_budget").display = is_gpu
        for field in self.query(TextField):
            field.placeholder = f"{format_bytes(FREE_SHARE * self._free(field.setting))} (the planner's)"
        self._draw_shares()

    def _go_to_the_likeliest(self, has_runs: bool) -> None:
        """Where Enter does what is most probably wanted; not when the user has moved already."""
        menu = self.query_one("#menu", OptionList)
        if menu.highlighted:
            return
        if self.draft.source:
            likely = "go-on"
        elif self._going and self._going[0].state.live:
            likely = "run-0"
        elif self.draft.answers:
            likely = "go-on"
        elif self._going:
            likely = "run-0"
        else:
            likely = "new" if has_runs or profiles.names() else "demo"
        names = [str(option.id).removeprefix("menu-") for option in menu.options]
        if likely in names:  # else the draft has become another one since the menu was drawn
            menu.highlighted = names.index(likely)

    def _free(self, setting: str) -> int:
        assert self.machine is not None
        gpus, device = self.machine.gpus, self.draft.get("device")
        if setting == "memory_budget" and gpus and device != "cpu":
            asked = [gpu.free_bytes for gpu in gpus if gpu.device == device]
            return asked[0] if asked else max(gpu.free_bytes for gpu in gpus)
        return self.machine.available_bytes

    def meant(self, field: TextField) -> str:
        """Sizes as RunConfig reads them."""
        return budget_text(field.value, self._free(field.setting)) if self.machine is not None else field.value

    def changed(self, setting: str) -> None:
        """Show what a budget comes to; another device has another memory."""
        if setting == "device" and self.machine is not None:
            self._draw_budgets()
        self._draw_shares()

    def _draw_shares(self) -> None:
        if self.machine is None:
            return
        for setting in ("memory_budget", "ram_budget"):
            free = self._free(setting)
            good = self.draft.problem(setting) is None
            asked = getattr(self.draft.good_config(), setting) if good else None
            drawn, style = bar((asked or FREE_SHARE * free) / max(free, 1), _BAR), "$text-quiet"
            figures = f"of {format_bytes(free)} free"
            if asked is not None and asked > free:
                style, figures = "$text-error", f"{MARKS['wrong']} more than {format_bytes(free)} free"
            elif asked is not None:
                style, figures = "$primary", f"{format_bytes(asked)} {figures}"
            words = Content.assemble((drawn, style), f" {figures}")
            self.query_one(f"#share-{setting}", Static).update(words)

    def _draw_menu(self) -> None:
        menu, begun = self.query_one("#menu", OptionList), bool(self.draft.answers)
        chosen = menu.highlighted
        items: list[tuple[str, str, str]] = []
        if begun:
            where = self.draft.source or "as you left it"
            items.append(("go-on", "Continue", f"{where}: {_answers(self.draft)}"))
        items.append(("new", "New run", "four short steps, everything has a default"))
        items.append(("demo", "Try it (--demo)", "some minutes, no download, no GPU needed"))
        for number, each in enumerate(self._going):
            verb = "Attach to" if each.state.live else "Resume"
            items.append(
                (
                    f"run-{number}",
                    f"{verb} {cut_words(each.name, 18)}",
                    state_words(each),
                )
            )
        saved = profiles.names()
        items.append(("profiles", "Profiles", ", ".join(saved) if saved else "none is saved yet"))
        items.append(("runs", "All runs", home_as_tilde(str(default_runs_path()))))
        menu.clear_options()
        room = max(20, self.size.width - 34)
        for key, name, words in items:
            line = Content.assemble(name.ljust(30), (cut_words(words, room), "$text-quiet"))
            menu.add_option(Option(line, id=f"menu-{key}"))
        menu.highlighted = min(chosen or 0, len(items) - 1)

    @on(OptionList.OptionHighlighted, "#menu")
    def _say_what_enter_does(self, event: OptionList.OptionHighlighted) -> None:
        key = str(event.option.id).removeprefix("menu-")
        if key.startswith("run-"):
            key = "attach" if self._going[int(key.removeprefix("run-"))].state.live else "resume"
        self.hint = self._note or _ABOUT.get(key, BEGIN)
        if self.focused is event.option_list:
            self.say_of(event.option_list)

    @on(OptionList.OptionSelected, "#menu")
    async def _chosen_from_menu(self, event: OptionList.OptionSelected) -> None:
        for field in self.query(TextField):
            sentence = self.draft.problem(field.setting)
            if sentence is not None:
                self.land_on(field.setting, bad_value(field.setting, field.value, sentence))
                return
        match str(event.option.id).removeprefix("menu-"):
            case "go-on":
                await self.tiny.navigate(GoTo("models", self.draft))
            case "new":
                await self.begin(Draft())
            case "demo":
                await self.begin(Draft.of({"demo": True}))
            case "profiles":
                await self.tiny.navigate(GoTo("profiles", self.draft))
            case "runs":
                self.app.switch_mode("runs")
            case key:
                await self._open(self._going[int(key.removeprefix("run-"))])

    async def begin(self, fresh: Draft) -> None:
        """A new draft, with the device and the budgets that stand here unless it has its own."""
        for setting in ("device", "memory_budget", "ram_budget"):
            if not fresh.get(setting):
                fresh.set(setting, self.draft.get(setting))
        self.draft.replace(fresh)
        self.draft.started = False
        await self.tiny.navigate(GoTo("models", self.draft))

    async def _open(self, each: RunSummary) -> None:
        try:
            if each.state.live:
                await self.tiny.navigate(OpenRun(each.path))
            else:
                await self.tiny.navigate(StartRun(each.path))
        except TinyDistillError as error:
            self.tiny.tell(error)

    def action_next(self) -> None:  # type: ignore[override]
        """From a budget to the menu."""
        focused = self.focused
        if isinstance(focused, TextField) and focused.problem:
            self.say_of(focused)
            return
        self.query_one("#menu", OptionList).focus()

    def ready_for(self, key: str) -> bool:
        """The menu has its lines, and the likeliest of them is chosen, once the machine was looked at."""
        return not self._first_look

    def action_details(self) -> None:
        """Machine, versions and folders on a page."""
        if self.machine is not None:
            self.app.push_screen(DetailsScreen(machine_lines(self.machine, 200)))

    async def action_back(self) -> None:
        """There is no step before: to the menu."""
        self.query_one("#menu", OptionList).focus()


def _runs_to_go_on_with(now: float) -> tuple[list[RunSummary], bool]:
    """The runs that the menu offers, live ones first; and whether there are any runs at all."""
    found = [runs.summary(path, now) for path in runs.find()[:20]]
    going = [each for each in found if each.state.live] + [each for each in found if each.state.resumable]
    return going[:_MOST_RUNS], bool(found)


def state_words(each: RunSummary) -> str:
    """A run's state and its place, as the menu shows them."""
    return ", ".join(words for words in (each.state.word, each.where) if words)


def machine_lines(machine: Hardware, width: int) -> list[str]:
    """The machine, a line for each thing it has."""
    several = len(machine.gpus) > 1
    lines = []
    for gpu in machine.gpus:
        lines.append(
            f"GPU{gpu.index if several else ' '}  {gpu.name}   {format_bytes(gpu.total_bytes)}, "
            f"{format_bytes(gpu.free_bytes)} free   driver {gpu.driver}"
            f"{f', capability {gpu.capability}' if gpu.capability else ''}"
        )
        if gpu.unusable:
            lines.append(f"      cannot be used: {gpu.unusable}")
        elif gpu.users:
            lines.append(f"      also used by {_programs(gpu.users)}")
    if not lines:
        lines.append(f"GPU   none: {machine.gpu_note}. The same run works here, slower.")
    of_container = machine.cgroup_limit_bytes
    limit = f"   (limit of the container {format_bytes(of_container)})" if of_container else ""
    lines.append(f"RAM   {format_bytes(machine.ram_bytes)}, {format_bytes(machine.available_bytes)} free{limit}")
    cores = f"{machine.cores} core{'s' if machine.cores != 1 else ''}"
    lines.append(f"CPU   {', '.join([cores, *machine.cpu_features[-2:]])}   {machine.cpu_name}")
    lines.append(f"Disk  {format_bytes(machine.disk_free_bytes)} free   {home_as_tilde(str(machine.disk_path))}")
    return [cut_words(line, width) for line in lines]


def _programs(users: Sequence[GpuUser]) -> str:
    """Return the other programs that hold memory of a GPU, grouped by name."""
    held: dict[str, int | None] = {}
    for user in users:
        name = user.name or "an unseen program"
        before = held.get(name, 0)
        held[name] = None if user.bytes is None or before is None else before + user.bytes
    words = [name if size is None else f"{name} {format_bytes(size)}" for name, size in held.items()]
    more = f" and {len(words) - _MOST_PROGRAMS} more" if len(words) > _MOST_PROGRAMS else ""
    return ", ".join(words[:_MOST_PROGRAMS]) + more


def _answers(draft: Draft) -> str:
    if draft.get("demo"):
        return "the demo"
    words = [Path(draft.get(name)).name for name in ("teacher", "student", "data") if draft.get(name)]
    return " → ".join(words) if words else ", ".join(draft.answers)
