"""The first screen: machine, device, budgets, and where Enter leads."""

from dataclasses import replace

import pytest
from textual import events
from textual.widgets import OptionList

from engine.cli import arguments
from engine.format import format_bytes
from engine.machine import hardware
from engine.machine.hardware import Gpu, GpuUser
from engine.planner.budget import FREE_SHARE
from engine.run import launch
from engine.settings import profiles
from tests.tinydistill_tui.fixtures import GIB, NOW, append, held, make_run
from tests.tinydistill_tui.screen import lines_of, text_of, until, until_keys
from tests.tinydistill_tui.wizard import MACHINE, until_data, until_models, until_plan, wizard
from tinydistill_tui import command
from tinydistill_tui.screens import welcome
from tinydistill_tui.terminal.opening import PURPOSE
from tinydistill_tui.work.draft import Draft

pytestmark = pytest.mark.usefixtures("same_machine")

GPUS = (
    Gpu(0, "NVIDIA RTX 3050 Laptop", 4 * GIB, 3 * GIB, "550.1", "8.6"),
    Gpu(1, "NVIDIA RTX 4090", 24 * GIB, 20 * GIB, "550.1", "8.9"),
)


async def test_one_of_several_gpus_is_chosen_and_the_plan_is_made_for_it(monkeypatch):
    monkeypatch.setattr(hardware, "detect", lambda path: replace(MACHINE, gpus=GPUS, gpu_note=""))
    async with wizard({"demo": True}) as (app, pilot):
        for words in ("GPU0  NVIDIA RTX 3050 Laptop   4.0 GiB, 3.0 GiB free", "driver 550.1, capability 8.9",
                      "(•) planner's choice   ( ) cuda:0   ( ) cuda:1   ( ) cpu", "of 20.0 GiB free"):  # fmt: skip
            assert words in text_of(app)
        await pilot.press("tab", "right")
        await until(pilot, lambda: "(•) cuda:0" in text_of(app), "it is chosen")
        assert "of 3.0 GiB free" in text_of(app)
        await pilot.press("left", "left")
        await until(pilot, lambda: "(•) cpu" in text_of(app), "the processor is chosen")
        assert not app.screen.query_one("#row-memory_budget").display
        await pilot.press("left")
        assert app.screen.draft.get("device") == "cuda:1"
        await pilot.press("escape", "enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        await until_data(app, pilot)
        await pilot.press("enter")
        screen = await until_plan(app, pilot)
        assert screen.draft.plan.settings.device == "cuda:1"
        assert "Peak GPU train" in text_of(app)


async def test_other_programs_on_the_gpu_are_told_with_what_they_hold(monkeypatch):
    users = (
        GpuUser(7, "firefox", 2**29),
        GpuUser(8, "Xorg", 2**28),
        GpuUser(9, "firefox", 2**29),
        GpuUser(10, "", None),
        GpuUser(11, "gnome-shell", 1),
    )
    used = replace(GPUS[1], users=users)
    monkeypatch.setattr(hardware, "detect", lambda path: replace(MACHINE, gpus=(GPUS[0], used), gpu_note=""))
    async with wizard({"demo": True}) as (app, _):
        lines = lines_of(app)
        place = next(number for number, line in enumerate(lines) if "GPU1" in line)
        words = "also used by firefox 1.0 GiB, Xorg 256 MiB, an unseen program and 1 more"
        assert lines[place + 1].strip() == words
        assert sum("also used by" in line for line in lines) == 1


async def test_budget_is_a_bar_and_more_than_there_is_is_said():
    async with wizard() as (app, pilot):
        assert "6.8 GiB (the planner's)" in text_of(app)
        assert "██████████▎· of 8.0 GiB free" in text_of(app)
        await pilot.press("tab", "4")
        await until(pilot, lambda: "██████······ 4.0 GiB of 8.0 GiB free" in text_of(app), "half of it")
        await pilot.press("0")
        await until(pilot, lambda: "✗ more than 8.0 GiB free" in text_of(app), "too much")


async def test_details_are_a_page_that_can_be_copied(monkeypatch):
    async with wizard() as (app, pilot):
        copied = []
        monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
        await pilot.press("d", "y", "escape")
        await until(pilot, lambda: "What would you like" in text_of(app), "back")
    assert "RAM   16.0 GiB, 8.0 GiB free" in copied[0]
    assert "torch 2." in copied[0]


def chosen(app):
    menu = app.screen.query_one("#menu", OptionList)
    return str(menu.get_option_at_index(menu.highlighted).id).removeprefix("menu-")


async def test_enter_does_what_is_likeliest(runs_folder):
    async with wizard() as (app, pilot):
        assert chosen(app) == "demo"  # the very first time
    profiles.save("small", {"student_batch": 8})
    async with wizard() as (app, pilot):
        assert chosen(app) == "new"
    Draft.of({"student_batch": 4}).save()
    async with wizard() as (app, pilot):
        assert chosen(app) == "go-on"
    with held(make_run(runs_folder, "a-live-one", "training")):
        async with wizard() as (app, pilot):
            await until(pilot, lambda: "Attach to a-live-one" in text_of(app), "the run is in the menu")
            assert chosen(app) == "run-0"
        async with wizard({"demo": True}) as (app, pilot):
            assert chosen(app) == "go-on"  # flags were typed


async def test_settings_of_a_profile_are_said_to_be_its_own():
    profiles.save("small", {"student_batch": 8, "demo": True})
    for words, source in (
        (["--profile", "small"], "from the profile small: the demo"),
        (["--profile", "small", "--epochs", "2"], "from the profile small and the command line: the demo"),
        (["--demo"], "from the command line: the demo"),
    ):
        typed, _ = arguments.parse(words, program="tinydistill-tui", description="", extend=lambda parser: None)
        given = launch.config_from(typed).asked()
        async with wizard(given, size=(120, 40), source=command._source(typed)) as (app, _):
            assert source in text_of(app)
            assert chosen(app) == "go-on"


async def test_profile_that_is_chosen_takes_the_place_of_the_command_line():
    profiles.save("small", {"student_batch": 8, "demo": True})
    async with wizard({"epochs": 3}) as (app, pilot):
        assert "from the command line: epochs" in text_of(app)
        await pilot.press("down", "down", "down", "enter")
        await until(pilot, lambda: "small sets" in text_of(app), "the profiles are shown")
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("escape")
        await until(pilot, lambda: "from the profile small: the demo" in text_of(app), "it says whose they are")


async def test_where_a_run_is_moves_on_in_the_menu(runs_folder, monkeypatch):
    monkeypatch.setattr(welcome, "RUNS_SECONDS", 0.05)
    path = make_run(runs_folder, "a-live-one", "training")
    with held(path):
        async with wizard() as (app, pilot):
            await until(pilot, lambda: "33 min left" in text_of(app), "where it is")
            progress = {"phase": "student", "done": 215, "total": 287, "unit": "steps", "eta_seconds": 100}
            append(path, [{"time": NOW, "kind": "progress", **progress}])
            await until(pilot, lambda: "2 min left" in text_of(app), "where it is now")


async def test_keys_that_come_in_one_piece_go_where_they_are_meant():
    async with wizard({"demo": True}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        screen = await until_data(app, pilot)
        for key in ("tab", "tab", "tab", "7"):  # as over a slow line: nothing in between
            app.post_message(events.Key(key, "7" if key == "7" else None))
        await until(pilot, lambda: screen.draft.get("samples") == "7", "it stands in the fourth field")
        assert screen.draft.get("data") == ""


async def test_more_samples_than_there_are_is_a_sentence_and_it_is_there_again_when_one_comes_back(notes):
    async with wizard({"data": str(notes)}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        screen = await until_data(app, pilot)
        await pilot.press("tab", "tab", "tab", *"12000")
        await until(pilot, lambda: "! Samples 12,000 is more than the text has (about" in text_of(app), "it is said")
        await pilot.press("escape")
        await until_models(app, pilot)
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is not screen and "! Samples 12,000 is more" in text_of(app), "again")
        assert any("Samples    12000" in line for line in lines_of(app))


async def test_data_set_on_the_hub_without_the_library_is_said_where_it_is_typed(monkeypatch):
    monkeypatch.setattr("engine.data.hub_dataset.is_installed", lambda library: False)
    async with wizard({"data": "owner/set"}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        await until(pilot, lambda: "pip install datasets" in text_of(app), "it is said")
        screen = app.screen
        await pilot.press("enter")
        await pilot.pause()
        assert app.screen is screen


async def test_every_step_plans_for_the_memory_that_the_first_screen_found(monkeypatch):
    free = iter(range(8 * GIB, 0, -GIB // 4))
    monkeypatch.setattr(hardware, "detect", lambda path: replace(MACHINE, available_bytes=next(free)))
    async with wizard({"demo": True}, size=(120, 40)) as (app, pilot):
        assert PURPOSE in text_of(app)
        found = app.screen.machine.available_bytes
        budget = f"{format_bytes(FREE_SHARE * found)}"
        assert f"{budget} (the planner's)" in text_of(app)
        await pilot.press("enter")
        await until_models(app, pilot)
        assert f"Fits the budget of {budget}" in text_of(app)
        await pilot.press("enter")
        await until_data(app, pilot)
        await pilot.press("enter")
        screen = await until_plan(app, pilot)
        assert f"of {budget} ✓ fits" in text_of(app)
        await pilot.press("f5")
        await until(pilot, lambda: screen.up_to_date and f"of {budget} ✓ fits" not in text_of(app), "looked at again")


async def test_the_line_above_the_keys_says_what_enter_does_with_the_chosen_line(runs_folder):
    make_run(runs_folder, "an-old-one", "stopped")
    said = {
        "run-0": "Enter shows the run while it works.",
        "run-1": "Enter resumes the run from where it stopped.",
        "runs": "Enter shows every run",
        "profiles": "Settings that were saved under a name",
        "new": "Everything has a default. Press Enter three times and then s.",
        "demo": "Everything has a default",
    }
    with held(make_run(runs_folder, "a-live-one", "training")):
        async with wizard() as (app, pilot):
            await until(pilot, lambda: chosen(app) == "run-0", "the live run is chosen")
            for _ in list(said):
                await until(pilot, lambda: said[chosen(app)] in lines_of(app)[-2], chosen(app), 10)
                said.pop(chosen(app))
                await pilot.press("down")
    assert not said


async def test_keys_below_a_budget_are_function_keys_under_their_own_names():
    async with wizard() as (app, pilot):
        await until_keys(app, pilot, "r Measure again", "? Help")
        app.screen.query_one("#field-ram_budget").focus()
        await until_keys(app, pilot, "F5 Measure again", "F1 Help")
