"""Words that have no room say so, and the help shows all of them."""

import pytest
from textual.app import App
from textual.content import Content
from textual.widgets import Static

from engine.model_files.demo import DEMO_TEACHER
from tests.tinydistill_tui.screen import text_of, until
from tests.tinydistill_tui.wizard import choose, until_data, until_models, wizard
from tinydistill_tui.dialogs.help import HelpScreen
from tinydistill_tui.widgets.excerpt import Excerpt

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


class Box(App):
    CSS = "#box { height: auto; max-height: 3; }"

    def compose(self):
        yield Excerpt(id="box")


async def test_words_are_cut_with_a_mark_and_whole_again_where_there_is_room():
    app = Box()
    async with app.run_test(size=(40, 10)) as pilot:
        box = app.query_one(Excerpt)
        box.say(Content.styled(WORDS, "bold"))
        await until(pilot, lambda: box.content_size.height == 3, "three lines")
        assert not box.is_cut
        for width, is_cut in ((24, True), (30, True), (60, False), (20, True), (120, False)):
            await pilot.resize_terminal(width, 10)
            await until(pilot, lambda: box.content_size.width == width and box.is_cut is is_cut, f"{width}")  # noqa: B023
            await until(pilot, lambda: ("F1 shows all" in text_of(app)) is is_cut, f"it says so {width}")  # noqa: B023
            if not is_cut:
                assert "sixteen" in text_of(app)
        box.say("short")
        await until(pilot, lambda: text_of(app).strip() == "short", "other words")
        assert not box.is_cut
        await pilot.resize_terminal(40, 10)
        box.say(WORDS)  # its place was one line high
        await until(pilot, lambda: "sixteen" in text_of(app) and not box.is_cut, "its place has grown")


@pytest.mark.usefixtures("same_machine")
async def test_reason_in_the_box_that_is_cut_is_whole_in_the_help(notes):
    values = {"data": str(notes), "teacher": str(DEMO_TEACHER), "memory_budget": "3GB"}
    async with wizard(values, size=(36, 24)) as (app, pilot):
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        await until_data(app, pilot)
        await pilot.press("enter")
        await choose(app, pilot, "student_batch")
        box = app.screen.query_one("#edit-words", Excerpt)
        await until(pilot, lambda: box.is_cut and "F1 shows all" in text_of(app), "it is cut, with a mark")
        whole = box.whole.plain
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), "the help is open")
        assert str(app.screen.query(".help-about").first(Static).content) == whole
