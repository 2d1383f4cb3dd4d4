"""Carries out the requests of ``navigation``. The only module that knows all screens; no screen imports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from textual.app import App
from textual.screen import Screen

from engine.settings.config import SETTINGS
from tinydistill_tui.dialogs.help import HelpScreen
from tinydistill_tui.dialogs.name import NameScreen
from tinydistill_tui.navigation import (
    AskFor,
    EditSetting,
    GoTo,
    OpenRun,
    Program,
    Request,
    ResumeWith,
    ShowLog,
    ShowResult,
    StartRun,
    TalkTo,
)
from tinydistill_tui.screens.data import DataScreen
from tinydistill_tui.screens.finish import FinishScreen
from tinydistill_tui.screens.models import ModelsScreen
from tinydistill_tui.screens.plan import PlanScreen
from tinydistill_tui.screens.profiles import ProfilesScreen
from tinydistill_tui.screens.run import RunScreen
from tinydistill_tui.screens.runs import RunsScreen
from tinydistill_tui.screens.step import StepScreen
from tinydistill_tui.screens.talk import TalkScreen
from tinydistill_tui.screens.welcome import WelcomeScreen
from tinydistill_tui.widgets.excerpt import Excerpt
from tinydistill_tui.work import control, runs
from tinydistill_tui.work.draft import Draft

_STEPS = {"models": ModelsScreen, "data": DataScreen, "plan": PlanScreen, "profiles": ProfilesScreen}
_OF_ONE_RUN = frozenset({"output_dir", "resume", "profile"})  # what another run like this one does not take over


def add_modes(app: App[int]) -> None:
    """Tell the app its three modes: the wizard, one run, all runs."""
    program = cast("Program", app)

    def run_screen() -> Screen[Any]:
        assert program.run_path is not None, "the run mode is entered through OpenRun"
        return RunScreen(program.run_path)

    if program.run_path is not None:
        runs.remember(program.run_path)
    app.add_mode("wizard", WelcomeScreen)
    app.add_mode("run", run_screen)
    app.add_mode("runs", RunsScreen)


async def follow(app: App[int], request: Request) -> None:
    """Carry out a request.

    Raises:
        TinyDistillError: a run cannot be started; what is shown stays.
    """
    match request:
        case GoTo(step, draft, instead):
            screen = _STEPS[step](draft)
            if instead:
                app.switch_screen(screen)
            else:
                app.push_screen(screen)
        case OpenRun(path):
            await _open_run(app, path)
        case StartRun(path):
            control.start(path)
            (await _open_run(app, path)).sent_off()
        case ResumeWith(path):
            _ask_what_changes(app, path)
        case AskFor(values):
            await app.switch_mode("wizard")
            while len(app.screen_stack) > 1:
                await app.pop_screen()
            kept = {name: value for name, value in values.items() if name not in _OF_ONE_RUN}
            await cast("WelcomeScreen", app.screen).begin(Draft.of(kept))
        case ShowResult(path, view):
            app.push_screen(FinishScreen(path, view))
        case ShowLog(at_error):
            app.pop_screen()
            if at_error and isinstance(app.screen, RunScreen):
                app.screen.go_to_last_error()
        case TalkTo(path, first):
            app.push_screen(TalkScreen(path, first))
        case EditSetting(name):
            await _edit(app, name)


def _ask_what_changes(app: App[int], path: Path) -> None:
    """Ask for the flags that ``--resume`` takes, start the run with them, and show it."""

    async def started(line: str | None) -> None:
        if line is not None:
            (await _open_run(app, path)).sent_off()

    names = ", ".join(name for name, info in SETTINGS.items() if info.may_change and info.group != "command")
    words = (
        f"Flags as on the command line, such as --steps 400. These may change: {names}; until ends it after a phase; "
        "and the folder of a model or of the text, if it was moved.\n↵ resumes the run · Esc leaves it"
    )
    title = f"Resume {path.name} with other settings"
    app.push_screen(NameScreen(title, "", lambda line: control.start(path, control.flags(line)), words), started)


async def _open_run(app: App[int], path: Path) -> RunScreen:
    """Show a run, whatever is shown now."""
    program = cast("Program", app)
    runs.remember(path)
    another = program.run_path != path
    program.run_path = path
    await app.switch_mode("run")
    while len(app.screen_stack) > 1:
        await app.pop_screen()
    screen = cast("RunScreen", app.screen)
    if another or screen.path != path:
        screen.attach(path)
    return screen


async def _edit(app: App[int], name: str) -> None:
    screen = app.screen
    if isinstance(screen, PlanScreen):
        screen.edit(name)
    elif isinstance(screen, StepScreen):
        screen.draft.save()
        plan = PlanScreen(screen.draft)
        await app.push_screen(plan)
        plan.edit(name)


def show_help(app: App[int]) -> None:
    """Help for what has the focus, on the screen that is shown."""
    cut = [excerpt.whole.plain for excerpt in app.screen.query(Excerpt) if excerpt.is_cut and excerpt.display]
    about = cut[::-1]  # the reason of the chosen setting is the last one
    for node in (app.focused, app.screen):
        sentence = getattr(node, "HELP", None) or getattr(node, "hint", "")
        if sentence and sentence not in about:
            about.append(str(sentence))
    app.push_screen(HelpScreen(about, app.screen.active_bindings))
