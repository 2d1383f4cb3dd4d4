"""The wizard's way from the first screen to a run that is going, by keyboard alone."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest
from textual import events
from textual.widgets import Input, OptionList

from engine.model_files.demo import DEMO_TEACHER
from engine.planner import measure, plan
from engine.run import control as run_control
from engine.run import launch, supervisor
from engine.run.folder import Run
from engine.settings import profiles
from engine.settings.config import SETTINGS, check_value
from tests.tinydistill_tui.screen import lines_of, text_of, until, until_keys, words_of
from tests.tinydistill_tui.wizard import (
    MACHINE,
    RATES,
    choose,
    paste,
    to_the_plan,
    until_data,
    until_models,
    until_plan,
    until_welcome,
    wizard,
)
from tinydistill_tui import palette
from tinydistill_tui.navigation import GoTo
from tinydistill_tui.screens.profiles import ProfilesScreen
from tinydistill_tui.screens.run import RunScreen
from tinydistill_tui.screens.step import SEE_ABOVE, bad_value
from tinydistill_tui.widgets.setting_editor import SettingEditor
from tinydistill_tui.work import control, runs
from tinydistill_tui.work.draft import Draft

pytestmark = pytest.mark.usefixtures("same_machine")


def stop(path):
    """End a run that a test has started, and wait for it."""
    run_control.request(path, "stop", by="test")
    until_when = time.monotonic() + 120
    while Run.open(path).is_live() and time.monotonic() < until_when:
        time.sleep(0.05)
    assert not Run.open(path).is_live()


@pytest.mark.parametrize("engine", ["fake", pytest.param("real", marks=pytest.mark.slow)])
async def test_demo_by_enter_enter_enter_s_starts_a_run(runs_folder, monkeypatch, engine):
    if engine == "fake":  # its own program with the run's lock, so that no phase has to load torch
        words = [sys.executable, "-m", "tests.tinydistill_tui.fake_engine"]
        monkeypatch.setattr(
            supervisor,
            "start",
            lambda path, last_word: subprocess.Popen([*words, path], stdout=subprocess.DEVNULL),
        )
    path = None
    try:
        async with wizard({"demo": True}) as (app, pilot):
            await to_the_plan(app, pilot)
            assert "✓ It fits" in text_of(app)
            await pilot.press("s")
            await until(pilot, lambda: isinstance(app.screen, RunScreen), "the run is shown", 30)
            path = app.run_path
            await until(pilot, lambda: app.screen.view.events > 0 and app.screen.live, "the supervisor speaks", 30)
            assert path.parent == runs_folder
            assert path.name.startswith("demo-")
            assert Run.open(path).settings.demo
            assert Draft.load().answers == {}  # a wizard that is opened now does not offer to continue with them
            app.switch_mode("wizard")
            welcome = await until_welcome(app, pilot)
            await until(pilot, lambda: f"Attach to {path.name}" in text_of(app), "the run is in the menu")
            assert len(app.screen_stack) == 1
            assert welcome.draft.answers == {}  # they are a run now
            assert Draft.load().answers == {}
            menu = welcome.query_one(OptionList)
            await until(
                pilot, lambda: str(menu.options[menu.highlighted or 0].id) == "menu-run-0", "Attach to it is chosen"
            )
            assert "as you left it" not in text_of(app)
    finally:
        if path is not None:
            stop(path)
        for process in control._started:
            process.wait(120)


async def test_screens_load_no_torch_and_no_numpy(run_in_a_fresh_interpreter):
    found = run_in_a_fresh_interpreter(
        "import sys, tinydistill_tui.screens.plan, tinydistill_tui.screens.profiles, tinydistill_tui.screens.data\n"
        "from engine.data.survey import survey\n"
        "from engine.planner import plan\n"
        "from engine.settings.config import RunConfig\n"
        "plan(RunConfig(demo=True), strict=False); survey('python-docs', previews=1)\n"
        "print([name for name in ('torch', 'transformers', 'h5py', 'numpy') if name in sys.modules])"
    )
    assert found == "[]"


@pytest.fixture
def run_in_a_fresh_interpreter():
    def run(code):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    return run


async def test_bad_field_stays_and_says_what_is_accepted(notes):
    async with wizard({"demo": True}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        screen = await until_data(app, pilot)
        screen.query_one("#field-samples").focus()
        await pilot.press(*"many")
        screen.query_one("#field-data").focus()
        await pilot.press("enter")
        await until(pilot, lambda: app.focused.id == "field-samples", "the cursor is in the bad field")
        assert app.screen is screen
        assert "✗ samples many: expected a whole number from 1 up" in text_of(app)
        assert screen.draft.get("samples") == "many"


async def test_escape_goes_back_at_once_and_keeps_what_is_there():
    async with wizard({"demo": True}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        screen = await until_data(app, pilot)
        screen.query_one("#field-samples").focus()
        await pilot.press(*"many", "escape")
        await until_models(app, pilot)
        await pilot.press("enter")
        await until_data(app, pilot)
        assert app.screen.query_one("#field-samples", Input).value == "many"
        assert app.screen.query_one("#field-samples").has_class("-bad")


async def test_the_split_of_a_profile_is_the_one_that_is_looked_at(tmp_path):
    for split, count in (("train", 30), ("dev", 3)):
        lines = [json.dumps({"text": f"{split} text number {number}"}) for number in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    async with wizard({"demo": True, "data": str(tmp_path), "data_split": "dev"}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        screen = await until_data(app, pilot)
        assert screen.found.documents == 3
        assert "dev text number" in text_of(app)
        screen.draft.set("data_split", "")
        screen.changed("data")
        await until(pilot, lambda: screen.found.documents == 30, "the training split is looked at")


async def test_too_large_a_batch_does_not_fit_and_is_not_started():
    async with wizard({"demo": True}) as (app, pilot):
        await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        await pilot.press("enter", *"3999")
        await until(pilot, lambda: "does not fit" in text_of(app), "it is said")
        assert "✗ does not fit" in text_of(app)
        words = " ".join(line.strip() for line in lines_of(app))
        assert "It does not fit. The student phase needs" in words
        assert "a: student_batch 1, gradient_accumulation 3999 · b: memory_budget" in words
        await pilot.press("enter", "s")
        await until(pilot, lambda: "Not started: it does not fit" in text_of(app), "the start is refused")
        assert app.screen.draft.get("student_batch") == "3999"
        assert "✎ student_batch" in text_of(app)
        await pilot.press("a")
        await until(pilot, lambda: "✓ It fits" in text_of(app), "the first remedy is taken")
        assert app.screen.draft.get("student_batch") == "1"
        await pilot.press("u")
        await until(pilot, lambda: "It does not fit" in text_of(app), "and taken back")
        await pilot.press("b")
        await until(pilot, lambda: "✓ It fits" in text_of(app), "the second remedy is taken")
        assert app.screen.draft.get("student_batch") == "3999"
        assert app.screen.draft.get("memory_budget").endswith("MB")


async def test_delete_gives_back_to_the_planner_and_u_takes_that_back():
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        before = screen.chosen
        await pilot.press("enter", *"8", "enter")
        await until(pilot, lambda: screen.up_to_date and screen.chosen.value == "8", "8 is planned")
        assert screen.chosen.by == "you"
        await pilot.press("delete")
        await until(pilot, lambda: screen.up_to_date and screen.chosen == before, "the planner's is back")
        assert "student_batch" not in screen.draft.answers
        await pilot.press("u")
        await until(pilot, lambda: screen.up_to_date and screen.chosen.value == "8", "8 is back")
        await pilot.press("u")
        await until(pilot, lambda: screen.up_to_date and screen.chosen == before, "the planner's again")


async def test_escape_in_the_box_takes_the_edit_back():
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        await pilot.press("enter", *"999")
        await until_keys(app, pilot, "↵ Keep")
        await pilot.press("escape")
        assert app.screen is screen
        assert app.focused.id == "settings"
        await until(pilot, lambda: screen.up_to_date and screen.chosen.value == "16", "it is as before")
        assert "student_batch" not in screen.draft.answers


async def test_arrows_take_half_or_twice_and_say_what_each_would_take():
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        await until(pilot, lambda: "←→ train with 4: " in text_of(app) and "· 32: " in text_of(app), "they are tried")
        before = screen.draft.plan.predicted["student"].peak_bytes
        await pilot.press("l")
        await until(pilot, lambda: screen.up_to_date and "✎ student_batch          32" in text_of(app), "twice")
        assert screen.draft.plan.predicted["student"].peak_bytes > before
        await pilot.press("h", "h")
        await until(pilot, lambda: screen.draft.get("student_batch") in ("16", "8"), "half")
        await pilot.press("k", "right")
        await until(pilot, lambda: "takes text; Enter lets you type" in text_of(app), "a path has no next value")


async def test_what_the_planner_now_takes_otherwise_is_said_with_what_it_was(notes):
    async with wizard({"data": str(notes), "teacher": str(DEMO_TEACHER)}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        now = screen.draft.plan.settings.gradient_accumulation
        await pilot.press("right")
        await until(pilot, lambda: f"was {now};" in text_of(app), "the accumulation has become another")
        assert screen.draft.plan.settings.gradient_accumulation != now


async def test_settings_are_found_by_words_and_through_the_palette(monkeypatch):
    runs_are_found = threading.Event()
    monkeypatch.setattr(palette, "FIND_SECONDS", 30)
    async with wizard({"demo": True}) as (app, pilot):
        monkeypatch.setattr(runs, "find", lambda: [runs_are_found.wait(120)][:0])
        await pilot.press("colon", *"set warm", "enter")
        assert isinstance(app.screen, palette.Palette), "Enter waits for the search"
        runs_are_found.set()
        screen = await until_plan(app, pilot)
        await until(pilot, lambda: screen.editing and screen.chosen.field == "warmup", "its box is open")
        await pilot.press("escape", "slash", *"checkpoint", "enter")

        def others() -> list[str]:
            fields = [row.field for row in screen._rows]
            return [name for name in fields if "checkpoint" not in name + SETTINGS[name].help]

        await until(pilot, lambda: not others(), "only these")
        assert {row.field for row in screen._rows} >= {"keep_checkpoints"}
        await pilot.press("escape")
        await until(pilot, lambda: len(screen._rows) > 20, "all again")


async def test_what_other_values_would_take_may_come_when_the_box_is_gone():
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        editor = screen.query_one(SettingEditor)
        await editor.remove_children()
        editor._were_tried("student_batch", [], "8")
        assert app.screen is screen


async def test_full_disk_at_the_start_is_a_sentence_and_the_answers_stay(monkeypatch):
    def full(config, seen):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(launch, "new_run", full)
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await pilot.press("s")
        await until(pilot, lambda: "No space left on device. Free some" in text_of(app), "it is said")
        assert app.screen is screen
        assert "your answers are kept" in text_of(app)
        assert Draft.load().answers == {"demo": "on"}


async def test_answers_stay_as_they_are_while_their_run_is_being_made(monkeypatch):
    may_go_on = threading.Event()

    def slow(config, seen):
        may_go_on.wait(60)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(launch, "new_run", slow)
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        await pilot.press("left")
        await until_plan(app, pilot)
        answers = dict(screen.draft.answers)
        app.post_message(events.Key("s", "s"))
        try:
            await until(pilot, lambda: "Making the run…" in text_of(app), "it says so at once")
            for action in ("undo", "give_back", "step(1)", "filter", "back", "start"):
                await app.run_action(f"screen.{action}", screen)
            screen.action_edit()
            assert screen.draft.answers == answers
            assert app.screen is screen
            assert not screen.editing
        finally:
            may_go_on.set()
        await until(pilot, lambda: "your answers are kept" in text_of(app), "the end of it is told")


async def test_a_switch_is_changed_with_space():
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "gradient_checkpointing")
        await pilot.press("enter", "space", "enter")
        await until(pilot, lambda: screen.up_to_date and screen.chosen.value == "on", "it is on")
        assert screen.chosen.by == "you"


async def test_what_cannot_be_stays_in_the_box_and_is_not_started():
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        await pilot.press("enter", *"0", "enter")
        assert screen.editing
        assert "✗ student_batch 0: expected a whole number from 1 to 4,096" in text_of(app)
        await until(pilot, lambda: "Invalid: " in text_of(app), "the plan says so too")


async def test_all_settings_are_behind_f6_and_a_contradiction_is_said():
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        few = len(screen._rows)
        await pilot.press("f6")
        assert len(screen._rows) > few
        for setting, value in (("steps", "10"), ("epochs", "2")):
            screen._table.move_cursor(row=[row.field for row in screen._rows].index(setting))
            await pilot.press("enter", *value, "enter")
        await until(pilot, lambda: "give either --steps or --epochs" in text_of(app), "the contradiction is said")
        await pilot.press("s")
        assert "Not started: a setting is invalid" in text_of(app)
        shown = {row.field: row for row in screen._rows}
        assert [(shown[name].value, shown[name].by) for name in ("steps", "epochs")] == [("10", "you"), ("2", "you")]
        assert shown["epochs"].why == "no plan with this value: see above"
        assert shown["steps"].why != shown["epochs"].why
        await pilot.press("u")
        await until(pilot, lambda: screen.planning.error is None, "the change is taken back")
        assert {row.field: row for row in screen._rows}["epochs"].by == "planner"


@pytest.mark.parametrize("phase", ["prepare", "teacher"])
async def test_a_phase_to_stop_after_is_shown_copied_and_given_back(phase, monkeypatch):
    async with wizard({"demo": True, "until": phase}) as (app, pilot):
        copied = []
        monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
        screen = await to_the_plan(app, pilot)
        assert "The run ends there, and can be resumed later." in words_of(app)
        await choose(app, pilot, "until")
        await pilot.press("y")
        assert copied == [f"tiny-distill --demo --until {phase}"]
        await pilot.press("delete")
        await until(pilot, lambda: screen.up_to_date and "student" in screen.draft.plan.predicted, "it continues")


async def test_copied_command_asks_for_the_same_run(monkeypatch):
    from engine.cli import arguments

    async with wizard() as (app, pilot):
        copied = []
        monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
        screen = await to_the_plan(app, pilot)
        await choose(app, pilot, "student_batch")
        await pilot.press("enter", *"3", "enter")
        await until(pilot, lambda: screen.up_to_date and screen.chosen.value == "3", "3 is planned")
        await pilot.press("y")
    typed, _ = arguments.parse(copied[0].split()[1:], program="tiny-distill", description="")
    config = launch.config_from(typed)
    again = plan(config, hardware=MACHINE, machine=RATES)
    assert again.predicted == screen.draft.plan.predicted
    assert again.settings.student_batch == 3
    assert again.settings.teacher == str(DEMO_TEACHER)


async def test_machine_is_measured_once_for_the_device_and_the_threads_that_are_planned(monkeypatch):
    asked = []
    monkeypatch.setattr(measure, "machine_rates", lambda **of: asked.append((of["device"], of["threads"])) or RATES)
    async with wizard({"demo": True, "threads": 2}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        await until(pilot, lambda: asked == [("cpu", 2)], "it is measured")
        await pilot.press("f6")
        await choose(app, pilot, "threads")
        await pilot.press("enter", *"1", "enter")
        await until(pilot, lambda: screen.up_to_date and asked[1:] == [("cpu", 1)], "and again for one thread")


async def test_draft_survives_the_program(notes):
    async with wizard() as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        await until_data(app, pilot)
        await paste(app, pilot, str(notes))
        await until(pilot, lambda: app.screen.found is not None and app.screen.found.files == 40, "the notes are found")
        assert "40 files" in text_of(app)
        app.screen.query_one("#preview").focus()
        await pilot.press("q")
    async with wizard() as (app, pilot):
        assert app.screen.draft.get("data") == str(notes)
        assert "Continue" in text_of(app)
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        await until_data(app, pilot)
        assert app.screen.query_one("#field-data", Input).value == str(notes)


async def test_damaged_draft_is_put_aside_with_a_note():
    from tinydistill_tui.work.draft import draft_path

    draft_path().parent.mkdir(parents=True)
    draft_path().write_text('teacher = "never closed')
    async with wizard() as (app, _):
        assert app.screen.draft.answers == {}
        assert "they are in last.bad now" in text_of(app)


async def test_text_that_is_not_there_is_said_and_next_stays(tmp_path):
    async with wizard() as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        screen = await until_data(app, pilot)
        await paste(app, pilot, str(tmp_path / "nowhere.txt"))
        await pilot.press("enter")
        await until(pilot, lambda: "✗ There is no file" in text_of(app), "it is said")
        assert app.screen is screen
        assert app.focused.id == "field-data"


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize(
    ("step", "answers"),
    [
        ("models", {"teacher": "/nowhere/at-all"}),
        ("models", {"student": "/nowhere/at-all"}),
        ("data", {"data": "/nowhere/at-all.txt"}),
        ("data", {"text_field": "body"}),
    ],
)
async def test_sentence_that_points_to_red_lines_stands_below_them(step, answers, size, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n' * 20)
    async with wizard({"demo": True, "data": str(rows), **answers}, size) as (app, pilot):
        await pilot.press("enter")
        screen = await until_models(app, pilot)
        if step == "data":
            await pilot.press("enter")
            await until(pilot, lambda: app.screen is not screen, "the data")
        await pilot.press("enter")
        await until(pilot, lambda: SEE_ABOVE in text_of(app), "it is said")
        lines = lines_of(app)
        pointer = next(number for number, line in enumerate(lines) if SEE_ABOVE in line)
        red = [number for number, line in enumerate(lines) if "✗" in line and number != pointer]
        assert red, text_of(app)
        assert max(red) < pointer


async def test_other_tokenizer_is_said_under_the_student(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(DEMO_TEACHER, other, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    async with wizard({"teacher": str(DEMO_TEACHER), "student": str(other)}) as (app, pilot):
        await pilot.press("enter")
        screen = await until_models(app, pilot)
        assert screen.facts.bad == "student"
        assert "token" in screen.facts.sentence
        await pilot.press("enter")
        await until(pilot, lambda: app.focused.id == "field-student", "the cursor is on the student")
        assert app.screen is screen


async def test_kind_of_the_student_is_changed_with_space_and_then_it_needs_a_name():
    async with wizard() as (app, pilot):
        await pilot.press("enter")
        screen = await until_models(app, pilot)
        await pilot.press("tab", "space")
        assert screen.query_one("#row-student").display
        assert not screen.query_one("#row-layers").display
        await pilot.press("enter")
        await until(pilot, lambda: app.focused.id == "field-student", "the cursor is on the student")
        assert "Which model is the student?" in text_of(app)
        await pilot.press("shift+tab", "space")
        assert screen.query_one("#row-layers").display
        assert screen.draft.get("student") == "from-teacher"


async def test_teacher_that_is_typed_ends_the_demo(tmp_path):
    async with wizard({"demo": True}) as (app, pilot):
        await pilot.press("enter")
        screen = await until_models(app, pilot)
        await paste(app, pilot, str(DEMO_TEACHER))
        assert screen.draft.get("demo") == ""
        assert screen.draft.good_config().contradictions() == []


async def test_budget_is_typed_in_gib_or_as_a_share():
    async with wizard() as (app, pilot):
        await pilot.press("tab", *"2")
        assert app.screen.draft.get("ram_budget") == "2GiB"
        await pilot.press("backspace", *"50 %")
        assert app.screen.draft.get("ram_budget") == "4096MiB"
        await pilot.press("enter")
        assert app.focused.id == "menu"


async def test_profile_is_saved_and_used():
    async with wizard({"demo": True, "student_batch": 8}) as (app, pilot):
        await to_the_plan(app, pilot)
        await pilot.press("p")
        await until(pilot, lambda: "Save as a profile" in text_of(app), "it asks for a name")
        await pilot.press(*"../x", "enter")
        await until(pilot, lambda: "expected a name of letters" in text_of(app), "a bad name is said")
        await pilot.press(*["backspace"] * 4, *"small", "enter")
        await until_plan(app, pilot)
    assert profiles.load("small") == {"demo": True, "student_batch": 8}
    async with wizard() as (app, pilot):
        lines = [line.strip() for line in lines_of(app)]
        menu = lines[lines.index("What would you like to do?") + 1 :]
        place = next(place for place, line in enumerate(menu) if line.startswith("Profiles"))
        await pilot.press(*["down"] * place, "enter")
        await until(pilot, lambda: "small sets" in text_of(app), "the profile is shown")
        assert any(line.split()[:1] == ["small"] and line.split()[-1] == "never" for line in lines_of(app))
        await pilot.press("enter")
        screen = await until_models(app, pilot)
        assert screen.draft.get("student_batch") == "8"
        app.push_screen(ProfilesScreen(screen.draft))
        await until(pilot, lambda: "small sets" in text_of(app), "the profile is shown")
        assert any(line.split()[:1] == ["small"] and line.split()[-1] == "13:00" for line in lines_of(app))


async def test_profile_that_another_program_wrote_is_there_after_f5():
    async with wizard() as (app, pilot):
        await app.navigate(GoTo("profiles", app.screen.draft))
        await until(pilot, lambda: isinstance(app.screen, ProfilesScreen), "the profiles")
        profiles.save("another", {"seed": 3})
        await pilot.press("f5")
        await until(pilot, lambda: "another" in text_of(app), "it is listed")


async def test_profiles_are_renamed_copied_deleted_and_given_away(tmp_path):
    profiles.save("small", {"student_batch": 8})
    async with wizard() as (app, pilot):
        app.push_screen(ProfilesScreen(app.screen.draft))
        await until(pilot, lambda: "small sets" in text_of(app), "the profile is shown")
        await pilot.press("c", "enter")
        await until(pilot, lambda: profiles.names() == ["small", "small-copy"], "there are two")
        await until(pilot, lambda: isinstance(app.screen, ProfilesScreen), "back")
        await pilot.press("n", "end", *"2", "enter")
        await until(pilot, lambda: profiles.names() == ["small-copy", "small2"], "it has another name")
        await until(pilot, lambda: isinstance(app.screen, ProfilesScreen), "back")
        await pilot.press("D", "d")
        await until(pilot, lambda: profiles.names() == ["small2"], "one is gone")
        await until(pilot, lambda: isinstance(app.screen, ProfilesScreen), "back")
        target = tmp_path / "given.toml"
        await pilot.press("e")
        await until(pilot, lambda: "Write small2 to" in text_of(app), "it asks where")
        app.screen.query_one(Input).value = str(target)
        await pilot.press("enter")
        await until(pilot, target.exists, "it is written")
        assert target.read_text() == profiles.path_of("small2").read_text()


async def test_picker_takes_a_folder_with_the_keyboard(notes):
    async with wizard({"data": str(notes)}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        screen = await until_data(app, pilot)
        await pilot.press("f2")
        await until(pilot, lambda: "note-00.md" in text_of(app), "the folder is shown")
        assert "picture.bin" not in text_of(app)
        await pilot.press("down", "c")
        await until(pilot, lambda: app.screen is screen, "back")
        assert screen.draft.get("data").endswith("note-00.md")


async def test_error_of_the_start_is_a_paragraph_and_the_answers_stay(monkeypatch, runs_folder):
    async with wizard({"demo": True}) as (app, pilot):
        screen = await to_the_plan(app, pilot)
        monkeypatch.setenv("TINYDISTILL_RUNS", str(runs_folder / "file" / "x"))
        (runs_folder / "file").write_text("in the way")
        await pilot.press("s")
        await until(pilot, lambda: "your answers are kept" in text_of(app), "it is said")
        assert app.screen is screen
        assert Draft.load().answers == {"demo": "on"}


async def test_model_that_is_not_here_can_be_downloaded_and_the_refusal_is_said(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    async with wizard({"teacher": "nobody/nothing-7b"}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        assert "F3 downloads nobody/nothing-7b" in text_of(app)
        await pilot.press("f3")
        assert "Downloading nobody/nothing-7b" in text_of(app)
        await until(pilot, lambda: "could not be downloaded" in text_of(app), "the refusal is said", 60)
        words = " ".join(text_of(app).split())
        assert "nobody/nothing-7b is not on this machine, and HF_HUB_OFFLINE forbids downloading it." in words


@pytest.mark.parametrize(("key", "goes_on"), [("s", False), ("g", True)])
async def test_text_of_which_most_is_left_out_is_told_and_asked_for(tmp_path, key, goes_on):
    rows = ['{"text": "Some words of a row."}'] * 40 + ['{"text": 5}'] * 41
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    async with wizard() as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        screen = await until_data(app, pilot)
        await paste(app, pilot, str(tmp_path))
        await until(pilot, lambda: screen.found is not None and screen.found.files == 1, "the rows are found")
        words = " ".join(text_of(app).split())
        assert "! 41 of 81 documents left out: 41 × record whose 'text' is no text, for example rows.jsonl 41." in words
        await pilot.press("enter")
        await until(pilot, lambda: "More than half of the text would not be used" in text_of(app), "it is asked")
        await pilot.press(key)
        if goes_on:
            await until_plan(app, pilot)
            assert screen.draft.get("allow_losses") == "on"
        else:
            await until(pilot, lambda: "Fix it, or choose other text" in text_of(app), "the step stays")
            assert app.screen is screen
            assert screen.draft.get("allow_losses") == ""


async def test_own_text_with_the_demos_teacher_is_warned_of_on_the_way_and_told_at_the_end(notes, runs_folder):
    warning = "The demo's teacher knows Python's documentation only"
    asked = {"teacher": str(DEMO_TEACHER), "student": "from-teacher", "data": str(notes)}
    async with wizard(asked, size=(120, 40)) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await until(pilot, lambda: f"! {warning}" in text_of(app), "the models say so")
        await pilot.press("enter")
        await until_data(app, pilot)
        await until(pilot, lambda: f"! {warning}" in text_of(app), "the data says so")
        await pilot.press("enter")
        await until_plan(app, pilot)
        await until(pilot, lambda: f"! {warning}" in text_of(app), "the plan says so")


async def test_answers_that_contradict_each_other_are_no_plan_that_is_being_thought_of(notes):
    async with wizard({"demo": True, "data": str(notes)}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        await until_data(app, pilot)
        await pilot.press("enter")
        await until_plan(app, pilot)
        await until(pilot, lambda: "the demo has its own" in words_of(app), "the reason is said")
        assert "There is no plan for these answers" in text_of(app)
        assert "thinking" not in text_of(app)


async def test_rows_there_are_is_one_number(notes):
    async with wizard({"data": str(notes)}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        await until_data(app, pilot)
        await until(pilot, lambda: re.search(r"some ([\d,]+) rows of", text_of(app)) is not None, "counted")
        counted = re.search(r"some ([\d,]+) rows of", text_of(app))
        await pilot.press("tab", "tab", "tab", *"12000")
        await until(pilot, lambda: "! Samples 12,000 is more" in text_of(app), "it is said")
        assert counted is not None
        assert f"than the text has (about {counted[1]} rows)" in text_of(app)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_value_that_is_not_accepted_is_said_on_one_row(name):
    for value in ("?", "?" * 300, "-1", "9" * 30):
        wrong = check_value(name, value)
        if wrong is None:
            continue
        said = bad_value(name, value, wrong)
        assert wrong in said
        assert len(f"✗ {said}") <= 78, said


@pytest.mark.parametrize(("pasted", "told"), [("one\n", False), ("one", False), ("one\ntwo\n", True)])
async def test_lines_that_a_field_does_not_take_are_told(pasted, told):
    async with wizard({}) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        field = app.screen.query_one("#field-teacher", Input)
        field.focus()
        await until(pilot, lambda: app.focused is field, "it has the focus")
        app.post_message(events.Paste(pasted))
        await until(pilot, lambda: field.value == "one", "the first line is there")
        assert any("Only the first line" in note.message for note in app._notifications) is told
