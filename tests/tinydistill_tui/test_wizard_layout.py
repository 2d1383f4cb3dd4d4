"""One guard for every step of the wizard: nothing lies outside, nothing is cut, the keys are whole, in any window."""

import pytest

from engine.model_files.demo import DEMO_TEACHER
from engine.settings import profiles
from tests.tinydistill_tui.screen import lines_of, text_of, until
from tests.tinydistill_tui.test_layout import outside, wrong_footers
from tests.tinydistill_tui.wizard import choose, until_data, until_models, until_plan, wizard
from tinydistill_tui.screens.base import clause
from tinydistill_tui.screens.profiles import ProfilesScreen

pytestmark = pytest.mark.usefixtures("same_machine")

# Where a text may end in an ellipsis: a reason in the plan's table, which is whole in the box below it; folders.
MAY_BE_CUT = ("planner  ", "you   ", "All runs", "▼ 📂", "…/", "planner's pick …")
SMALL_AND_LARGE = ((60, 16), (40, 10), (20, 5), (200, 60))


async def scenes(app, pilot):
    """Go through the wizard, and stop at everything that it shows."""
    yield "welcome"
    await pilot.press("d")
    await until(pilot, lambda: "Interpreter" in text_of(app), "the details are shown")
    yield "details"
    await pilot.press("escape")
    app.push_screen(ProfilesScreen(app.screen.draft))
    await until(pilot, lambda: "is here" in text_of(app), "the profile is shown")
    yield "profiles"
    await pilot.press("escape", "enter")
    await until_models(app, pilot)
    yield "models"
    await pilot.press("enter")
    screen = await until_data(app, pilot)
    await until(pilot, lambda: "Records on disk" in text_of(app), "the rows are counted")
    yield "data"
    await pilot.press("f2")
    await until(pilot, lambda: "note-00.md" in text_of(app), "the folder is shown")
    yield "picker"
    await pilot.press("escape")
    await until(pilot, lambda: app.screen is screen, "back")
    await pilot.press("enter")
    await choose(app, pilot, "student_batch")
    yield "plan"
    await pilot.press("enter")
    yield "editing"
    await pilot.press(*"3999", "enter")
    await until(pilot, lambda: " It does not fit" in text_of(app), "it does not fit")
    yield "misfit"
    await pilot.press("f6")
    yield "all"
    await pilot.press("slash", *"batch")
    await until(pilot, lambda: "epochs" not in text_of(app), "the settings are filtered")
    yield "filter"
    await pilot.press("escape", "p")
    await until(pilot, lambda: "Save as a profile" in text_of(app), "it asks for a name")
    yield "name"
    await pilot.press("escape", "colon")
    await pilot.press(*"set epochs")
    await until(pilot, lambda: "Passes of the student" in text_of(app), "the palette finds it")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_nothing_is_outside_and_nothing_is_cut(size, notes):
    profiles.save("small", {"student_batch": 8, "data": str(notes)})
    values = {"data": str(notes), "teacher": str(DEMO_TEACHER), "memory_budget": "3GB"}
    async with wizard(values, size=size) as (app, pilot):
        async for scene in scenes(app, pilot):
            assert outside(app) == [], scene
            cut = [line for line in lines_of(app) if "…" in line and not any(words in line for words in MAY_BE_CUT)]
            assert cut == [] or scene == "name", scene  # behind that box is the plan, half covered
            assert not any(line.rstrip().endswith(("does", "does not")) for line in lines_of(app)), scene
            await until(pilot, lambda: wrong_footers(app) == [], f"the keys fit: {scene}")


@pytest.mark.slow
async def test_any_window_shows_something_and_ascii_leaves_nothing_else(notes):
    profiles.save("small", {"student_batch": 8, "data": str(notes)})
    values = {"data": str(notes), "teacher": str(DEMO_TEACHER), "memory_budget": "3GB"}
    async with wizard(values, ascii=True) as (app, pilot):
        async for scene in scenes(app, pilot):
            assert text_of(app).isascii(), (scene, [line for line in lines_of(app) if not line.isascii()])
            for size in SMALL_AND_LARGE:
                await pilot.resize_terminal(*size)
                assert text_of(app).strip(), (scene, size)
                assert text_of(app).isascii(), (scene, size)
                if size[0] >= 20:
                    await until(pilot, lambda: wrong_footers(app) == [], f"the keys fit: {scene} {size}")
            await pilot.resize_terminal(80, 24)


async def test_what_a_field_is_for_is_never_cut_and_a_small_window_is_told_what_would_do(notes):
    async with wizard({"data": str(notes), "teacher": str(DEMO_TEACHER)}) as (app, pilot):
        for wait in (until_models, until_data, until_plan):
            screen = app.screen
            for widget in screen.focus_chain:
                widget.focus()
                await pilot.pause()
                verdict = lines_of(app)[22].rstrip()
                assert verdict.endswith((".", "?")), (widget, verdict)
            await pilot.resize_terminal(60, 20)
            await until(pilot, lambda: lines_of(app)[18].startswith(" 80×24 shows all. "), "it says what would do")
            await pilot.resize_terminal(80, 24)
            await until(pilot, lambda: "shows all" not in text_of(app), "it fits again")
            app.screen.focus_chain[0].focus()
            if wait is until_models:
                await pilot.press("escape")
            await pilot.press("enter")
            await wait(app, pilot)


def test_sentence_ends_with_a_clause_where_there_is_no_room_for_all_of_it():
    assert clause("Short.", 10) == "Short."
    whole = "One thing; another, and a third (as it were)."
    assert [clause(whole, room) for room in (45, 34, 12)] == [whole, "One thing; another, and a third.", "One thing."]
    assert clause("No clause in here", 4) == "No clause in here"
