"""Keys that arrive all at once do what the same keys do when they are typed slowly."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from textual import events
from textual._xterm_parser import XTermParser
from textual.command import CommandPalette
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Input

from tests.tinydistill_tui.fixtures import held, make_run
from tests.tinydistill_tui.screen import all_keys_handled, text_of, until, watching
from tests.tinydistill_tui.wizard import choose, to_the_plan, until_data, until_models, until_plan, wizard
from tinydistill_tui.app import TinyDistillApp
from tinydistill_tui.dialogs.name import NameScreen
from tinydistill_tui.dialogs.picker import PickerScreen
from tinydistill_tui.navigation import GoTo
from tinydistill_tui.palette import SettingCommands
from tinydistill_tui.screens.models import ModelsScreen
from tinydistill_tui.screens.plan import PlanScreen
from tinydistill_tui.screens.runs import RunsScreen
from tinydistill_tui.terminal.key_queue import apart, keep_escape
from tinydistill_tui.work import control

pytestmark = pytest.mark.usefixtures("same_machine", "runs_folder")

_NAMES = {"/": "slash", ":": "colon", "?": "question_mark", " ": "space", ".": "full_stop"}


def keys_of(*parts: str) -> list[events.Key]:
    """Keys by their names (``enter``, ``escape``, ``f2``), words letter by letter (``=slow``)."""
    keys: list[events.Key] = []
    for part in parts:
        for name in part[1:] if part.startswith("=") else [part]:
            character = name if len(name) == 1 else None
            keys.append(events.Key(_NAMES.get(name, name), character))
    return keys


async def burst(app: TinyDistillApp, pilot: Pilot[Any], *parts: str) -> None:
    """Post keys in a row, and wait until the last one has been handled."""
    for key in keys_of(*parts):
        app.post_message(key)
    await pilot.pause()
    await until(pilot, lambda: app.leaving or all_keys_handled(app), "all keys are handled")


@pytest.fixture(params=[0.0, 0.15], ids=["", "the focus comes late"])
def focus_after(request, monkeypatch):
    """Let a widget that asks for the focus get it some time later, as on a busy machine."""
    focus = Widget.focus

    def late(self: Widget, *args: Any, **options: Any) -> Widget:
        self.app.call_later(asyncio.sleep, request.param)
        return focus(self, *args, **options)

    monkeypatch.setattr(Widget, "focus", late)


def value(app: TinyDistillApp, selector: str) -> str:
    return app.screen.query_one(selector, Input).value


async def test_a_profiles_name_never_starts_a_run(monkeypatch):
    started: list[Any] = []
    monkeypatch.setattr("engine.run.launch.new_run", lambda config, seen: started.append(config))
    async with wizard({"demo": True}) as (app, pilot):
        await to_the_plan(app, pilot)
        await burst(app, pilot, "p", "=slow")
        assert isinstance(app.screen, NameScreen)
        assert value(app, "#name") == "slow"
        assert not started


async def test_a_filter_on_the_list_of_runs_neither_quits_nor_begins_a_run(runs_folder):
    make_run(runs_folder, "qwen-notes", scene="done")
    make_run(runs_folder, "other", scene="done")
    async with watching(None) as (app, pilot):
        app.switch_mode("runs")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen), "the list")
        await burst(app, pilot, "/", "=qwen")
        assert not app.leaving
        assert isinstance(app.screen, RunsScreen)
        assert value(app, "#runs-filter-field") == "qwen"
        assert "Only runs with these words." in text_of(app)


async def test_quit_and_keys_behind_it_end_in_order(runs_folder):
    make_run(runs_folder, "other", scene="done")
    async with watching(None) as (app, pilot):
        app.switch_mode("runs")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen), "the list")
        await burst(app, pilot, "q", "=nsa", "enter")
        assert app.leaving
    assert app.return_code == 0


@pytest.mark.parametrize("words", ["out of", "warn", "acne", "space pause"])
async def test_a_filter_of_the_log_does_nothing_to_the_run(runs_folder, monkeypatch, words):
    asked: list[str] = []
    monkeypatch.setattr(control, "ask", lambda path, command: asked.append(command))
    path = make_run(runs_folder, "notes", scene="training")
    with held(path):
        async with watching(path) as (app, pilot):
            screen = app.screen
            await burst(app, pilot, "/", f"={words}")
            assert app.screen is screen
            assert isinstance(app.focused, Input)
            assert app.focused.value == words
            assert asked == []


async def test_enter_and_s_on_the_data_go_through_the_plan_to_the_start(monkeypatch, notes):
    started: list[Any] = []

    def new_run(config: Any, seen: Any) -> Any:
        started.append(config)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.run.launch.new_run", new_run)
    async with wizard({"demo": True}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        await until_data(app, pilot)
        await burst(app, pilot, "enter", "s")
        assert isinstance(app.screen, PlanScreen)
        assert len(started) == 1
        assert app.screen.draft.get("text_field") == ""


async def test_three_enters_are_three_steps():
    async with wizard({"demo": True}) as (app, pilot):
        await burst(app, pilot, "enter", "enter", "enter")
        assert isinstance(app.screen, PlanScreen)


@pytest.mark.usefixtures("focus_after")
async def test_escape_from_a_box_and_a_filter_behind_it():
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        before = dict(screen.draft.answers)
        await burst(app, pilot, "enter", "escape", "/", "=checkpoint")
        assert not screen.editing
        assert screen.draft.answers == before
        assert value(app, "#settings-filter") == "checkpoint"


@pytest.mark.parametrize("letter", ["q", "d"])
async def test_escape_and_a_letter_in_one_read_change_no_teacher(letter):
    async with wizard({"demo": True}) as (app, pilot):
        await burst(app, pilot, "enter")
        screen = await until_models(app, pilot)
        app.post_message(events.Key(f"alt+{letter}", letter))
        await burst(app, pilot)
        assert screen.draft.get("demo") == "on"
        assert screen.draft.get("teacher") == ""
        assert app.leaving if letter == "q" else not isinstance(app.screen, ModelsScreen)


@pytest.mark.usefixtures("focus_after")
async def test_a_number_typed_into_a_box_just_opened_is_kept():
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        await burst(app, pilot, "enter", "8", "enter")
        assert not screen.editing
        assert screen.draft.get("student_batch") == "8"


async def test_arrows_in_a_row_take_as_many_steps():
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        first = screen.draft.plan.settings.student_batch
        await burst(app, pilot, "left", "left")
        await until_plan(app, pilot)
        assert screen.draft.get("student_batch") == str(first // 4)


async def test_a_path_typed_behind_browse_goes_into_the_picker():
    async with wizard({"demo": True}) as (app, pilot):
        await burst(app, pilot, "enter", "enter")
        screen = await until_data(app, pilot)
        await burst(app, pilot, "f2", "tab", "=/tmp")
        assert isinstance(app.screen, PickerScreen)
        assert screen.draft.get("text_field") == ""
        assert "/tmp" in next(field.value for field in app.screen.query(Input))


async def test_a_filter_of_the_plan_has_all_of_its_letters():
    async with wizard({"demo": True}) as (app, pilot):
        await to_the_plan(app, pilot)
        await burst(app, pilot, "/", "=steps")
        assert value(app, "#settings-filter") == "steps"
        assert "Only settings with these words." in text_of(app)


async def test_the_palette_has_all_of_its_letters():
    async with wizard({"demo": True}) as (app, pilot):
        await burst(app, pilot, ":", "=set seed")
        assert isinstance(app.screen, CommandPalette)
        assert app.screen.query_one(Input).value == "set seed"


@pytest.mark.usefixtures("focus_after")
@pytest.mark.parametrize("from_the_plan", [True, False])
async def test_keys_behind_a_command_of_the_palette_wait_for_what_it_opens(monkeypatch, from_the_plan):
    """The search takes a while, and so does a plan that is not there yet: the box opens behind both."""
    search = SettingCommands.search

    async def slowly(self: SettingCommands, query: str) -> Any:
        await asyncio.sleep(0.3)
        async for hit in search(self, query):
            yield hit

    monkeypatch.setattr(SettingCommands, "search", slowly)
    async with wizard({"demo": True}) as (app, pilot):
        if from_the_plan:
            await to_the_plan(app, pilot)
        await burst(app, pilot, ":", "=set student_batch", "enter", "8", "enter", "/", "=warm")
        screen = app.screen
        assert isinstance(screen, PlanScreen)
        assert screen.draft.get("student_batch") == "8"
        assert not screen.editing
        assert value(app, "#settings-filter") == "warm"


async def test_tab_goes_to_the_row_that_the_key_before_has_shown():
    async with wizard() as (app, pilot):
        await app.navigate(GoTo("models", app.screen.draft))
        screen = await until_models(app, pilot)
        await burst(app, pilot, "tab", "space", "tab", "=small", "tab", "shift+tab", "shift+tab", "space", "tab", "=3")
        assert screen.draft.get("student_layers") == "3"
        assert screen.query_one("#field-student").value == "small"
        assert screen.draft.get("teacher") == ""


async def test_help_opens_and_closes_in_a_burst():
    async with wizard({"demo": True}) as (app, pilot):
        await burst(app, pilot, "?", "escape", "?", "escape", "enter")
        assert isinstance(app.screen, ModelsScreen)


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        ("\x1bq", ["escape", "q"]),
        ("\x1b/", ["escape", "slash"]),
        ("\x1b/checkpoint", ["escape", "slash", *"checkpoint"]),
        ("\x1b\r", ["escape", "enter"]),
        ("\x1bQ", ["escape", "Q"]),
        ("\x1b[A", ["up"]),
        ("\x1b[A\x1bq", ["up", "escape", "q"]),
    ],
)
def test_terminal_keeps_an_escape_that_a_key_follows(typed, keys):
    keep_escape()
    parser = XTermParser()
    found = [key for token in [*parser.feed(typed), *parser.feed("")] for key in [token] if isinstance(key, events.Key)]
    assert [key.key for key in found] == keys


def test_alt_with_a_letter_is_escape_and_the_letter():
    assert [key.key for key in apart(events.Key("alt+q", "q"))] == ["escape", "q"]
    assert [key.key for key in apart(events.Key("alt+shift+q", "Q"))] == ["escape", "Q"]
    assert [key.key for key in apart(events.Key("alt+left", None))] == ["alt+left"]


# Any keys on any screen: a burst ends where the same keys end when each one waits for the one before.

_WALK = st.lists(
    st.sampled_from(
        [
            "enter",
            "escape",
            "tab",
            "down",
            "up",
            "left",
            "right",
            "/",
            "=8",
            "=ab",
            "p",
            "f2",
            "f6",
            "?",
            ":",
            "u",
            "=q",
        ]
    ),
    min_size=2,
    max_size=7,
)


async def _end_of(parts: list[str], slowly: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    def new_run(config: Any, seen: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("engine.run.launch.new_run", new_run)
        async with wizard({"demo": True}) as (app, pilot):
            if slowly:
                for part in parts:
                    for key in keys_of(part):
                        app.post_message(key)
                        await pilot.pause()
                        await until(pilot, lambda: app.leaving or all_keys_handled(app), "the key is handled")
                        await pilot.pause(0.3)
            else:
                await burst(app, pilot, *parts)
            if app.leaving:
                return ("left",)
            with contextlib.suppress(Exception):
                if isinstance(app.screen, PlanScreen):
                    await until_plan(app, pilot)
            await pilot.pause(0.3)
            drafts = [screen.draft.answers for screen in app.screen_stack if hasattr(screen, "draft")]
            return (
                [type(screen).__name__ for screen in app.screen_stack],
                app.focused.id if app.focused is not None else None,
                [dict(answers) for answers in drafts],
                [field.value for field in app.screen.query(Input)],
                getattr(app.screen, "editing", None),
            )


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(_WALK)
def test_a_burst_ends_where_slow_typing_ends(monkeypatch, parts):
    slow = asyncio.run(_end_of(parts, True, monkeypatch))
    fast = asyncio.run(_end_of(parts, False, monkeypatch))
    assert fast == slow


async def test_enter_from_before_the_screen_was_there_is_an_enter():
    async with wizard({"demo": True}) as (app, pilot):
        app.post_message(events.Key("ctrl+j", "\n"))
        await until_models(app, pilot)
