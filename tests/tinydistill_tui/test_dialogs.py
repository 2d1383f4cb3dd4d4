"""Boxes over a screen."""

from __future__ import annotations

import pytest

from tests.tinydistill_tui.fixtures import held, make_run
from tests.tinydistill_tui.screen import text_of, until, watching
from tests.tinydistill_tui.wizard import until_models, wizard
from tinydistill_tui.dialogs.confirm import Answer, ConfirmScreen
from tinydistill_tui.dialogs.details import PageScreen
from tinydistill_tui.dialogs.help import key_table
from tinydistill_tui.dialogs.name import NameScreen
from tinydistill_tui.dialogs.picker import PickerScreen
from tinydistill_tui.navigation import GoTo

pytestmark = pytest.mark.usefixtures("same_machine", "runs_folder")


@pytest.mark.parametrize("name", ["[red]x", "a[/]", "b[/b] [", "$accent [@click=app.exit]c"])
async def test_a_name_that_looks_like_markup_is_a_name(name, tmp_path):
    boxes = [
        ConfirmScreen(f"Stop {name}?", name, [Answer("keep", name, "k")]),
        NameScreen(f"Another name for {name}", name, lambda _: None),
        PickerScreen(f"The folder of {name}", str(tmp_path), wanted="model"),
        PageScreen(f"About {name}", name),
    ]
    async with wizard() as (app, pilot):
        for box in boxes:
            await app.push_screen(box)
            await pilot.pause()
            assert name in text_of(app), box
            await app.pop_screen()


@pytest.mark.parametrize("key", ["S", "q", "?"])
async def test_a_live_run_whose_name_looks_like_markup_can_be_asked_about(key, runs_folder):
    path = make_run(runs_folder, name="x[b] [red]")
    with held(path):
        async with watching(path) as (app, pilot):
            await pilot.press(key)
            await until(pilot, lambda: len(app.screen_stack) > 1, "the box is there")
            await pilot.pause()
            assert "x[b] [red]" in text_of(app) or key == "?"


async def test_help_says_what_enter_does_with_the_chosen_row(runs_folder):
    make_run(runs_folder, scene="done")
    async with wizard() as (app, pilot):
        await pilot.press("?")
        assert "Do it" in text_of(app)
        await pilot.press("escape")
        await app.switch_mode("runs")
        await until(pilot, lambda: "done" in text_of(app), "the runs are there")
        await pilot.press("?")
        assert "Open the run" in text_of(app)
        assert "Select  " not in text_of(app)


@pytest.mark.parametrize("typed", ["~nobody-of-this-name/x", "/" + "x" * 3000, "nowhere"])
async def test_a_path_that_cannot_be_is_answered_and_the_picker_stays(typed, tmp_path):
    async with wizard() as (app, pilot):
        box = PickerScreen("The text", typed, wanted="data")
        await app.push_screen(box)
        await pilot.pause()
        app.screen.query_one("#picker-path").value = typed
        await pilot.press("tab", "enter")
        await until(pilot, lambda: len(app._notifications) > 0, "it is answered")
        assert app.screen is box


async def test_the_picker_begins_where_the_program_was_started(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert PickerScreen("The text", "", wanted="data")._begin == tmp_path
    assert PickerScreen("The text", "notes", wanted="data")._begin == tmp_path / "notes"
    assert PickerScreen("The text", "notes/none", wanted="data")._begin == tmp_path / "notes"


async def test_help_of_a_field_begins_with_the_keys_of_its_screen():
    async with wizard() as (app, pilot):
        await app.navigate(GoTo("models", app.screen.draft))
        await until_models(app, pilot)
        told = key_table(app.screen.active_bindings).plain
        groups = [line for line in told.splitlines() if line and not line.startswith(" ")]
        assert groups == ["Models", "Move", "Edit the text", "Everywhere"]
        assert told.index("Look for a model's folder") < told.index("Move") < told.index("Delete character left")
        assert told.index("On, or to the first bad field") < told.index("Move")


@pytest.mark.parametrize("size", [(80, 24), (60, 20), (40, 12), (30, 8)])
async def test_each_answer_is_whole_in_any_window_or_comes_into_sight_when_chosen(size, runs_folder):
    path = make_run(runs_folder)
    with held(path):
        async with watching(path, size=size) as (app, pilot):
            await pilot.press("q")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question is there")
            for label in ("Leave it running (d)", "Stop, keep state (s)", "Stay (q)"):
                await until(pilot, lambda label=label: label in text_of(app), label, 10)
                await pilot.press("down")
