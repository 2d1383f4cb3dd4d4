"""The last row of a screen: the keys that work now."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Footer, Input

from tests.tinydistill_tui.screen import until
from tinydistill_tui.widgets.key_line import KeyLine


class KeysApp(App[None]):
    """A line of keys: ours, or Textual's own."""

    def __init__(self, line: type[Widget] = KeyLine) -> None:
        super().__init__()
        self.line = line

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "count('a')", "Add", tooltip="Add one"),
        Binding("b", "count('b')", "Both"),
        Binding("c", "count('b')", "Both again"),
        Binding("d", "count('d')", "Does not work"),
        Binding("h", "count('h')", "Hidden", show=False),
        Binding("w", "count('w')", "更多", key_display="W"),
        Binding("x", "gone", "Not there now"),
    ]
    pressed: str = ""
    rings: int = 0

    def compose(self) -> ComposeResult:
        yield Input()
        yield KeyLine() if self.line is KeyLine else Footer(compact=True, show_command_palette=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return None if parameters == ("d",) else action != "gone"

    def action_count(self, key: str) -> None:
        self.pressed += key

    def bell(self) -> None:
        self.rings += 1


async def ready(app: KeysApp, pilot: Pilot[Any]) -> KeyLine:
    app.set_focus(None)
    line = app.query_one(KeyLine)
    await until(pilot, lambda: "Add" in text_of(app), "the keys are shown")
    return line


def text_of(app: KeysApp) -> str:
    return app.screen._compositor.render_strips()[-1].text


async def test_it_shows_the_keys_of_textuals_footer() -> None:
    found = []
    for line in (KeyLine, Footer):
        app = KeysApp(line)
        async with app.run_test(size=(80, 10)) as pilot:
            app.set_focus(None)
            await until(pilot, lambda app=app: "Add" in text_of(app), "the keys are shown")
            found.append(text_of(app))
    assert found[0] == found[1]
    assert found[0].split() == ["a", "Add", "b", "Both", "d", "Does", "not", "work", "W", "更多"]


async def test_it_follows_the_focus() -> None:
    app = KeysApp()
    async with app.run_test(size=(80, 10)) as pilot:
        line = await ready(app, pilot)
        assert [key.key for key in line.keys] == ["a", "b", "d", "w"]
        app.query_one(Input).focus()  # takes letters
        await until(pilot, lambda: not text_of(app).strip(), "no key is shown")
        app.set_focus(None)
        await until(pilot, lambda: "Add" in text_of(app), "the keys are shown again")


@pytest.mark.parametrize(("does", "pressed", "rings"), [("Add", "a", 0), ("更多", "w", 0), ("Does not work", "", 1)])
async def test_a_click_on_a_key_presses_it_where_it_works(does: str, pressed: str, rings: int) -> None:
    app = KeysApp()
    async with app.run_test(size=(80, 10)) as pilot:
        await ready(app, pilot)
        text = text_of(app)
        before = text[: text.index(does)]  # only the last key has signs that are two cells wide
        for part in range(2):
            await pilot.click(KeyLine, offset=(len(before) + part, 0))
        await pilot.pause()
        assert (app.pressed, app.rings) == (2 * pressed, 2 * rings)
        await pilot.click(KeyLine, offset=(50, 0))
        assert (app.pressed, app.rings) == (2 * pressed, 2 * rings)


async def test_a_key_that_is_pointed_at_says_more() -> None:
    app = KeysApp()
    async with app.run_test(size=(80, 10)) as pilot:
        line = await ready(app, pilot)
        await pilot.hover(KeyLine, offset=(1, 0))
        assert line.tooltip == "Add one"
        colours = {segment.text: segment.style.bgcolor for segment in line.render_line(0) if segment.style}
        assert colours["Add" if "Add" in colours else " Add"] != colours[" Both"]
        await pilot.hover(KeyLine, offset=(5, 0))  # between two keys
        assert line.tooltip is None
        await pilot.hover(KeyLine, offset=(6, 0))
        assert line.tooltip is None  # this key has none
        await pilot.hover(KeyLine, offset=(1, 0))
        await pilot.hover(Input)
        await until(pilot, lambda: line.tooltip is None, "no key is pointed at")


async def test_the_wheel_reaches_keys_for_which_the_window_is_too_narrow() -> None:
    app = KeysApp()
    async with app.run_test(size=(20, 10)) as pilot:
        await ready(app, pilot)
        assert "更多" not in text_of(app)
        for _ in range(20):
            await pilot._post_mouse_events([events.MouseScrollDown], KeyLine)
        await until(pilot, lambda: text_of(app).endswith("更多"), "the last key is shown")
        await pilot.click(KeyLine, offset=(19, 0))
        assert app.pressed == "w"
        await pilot._post_mouse_events([events.MouseScrollUp], KeyLine)
        await until(pilot, lambda: not text_of(app).endswith("更多"), "keys before it are shown")
        await pilot.resize_terminal(80, 10)
        await until(pilot, lambda: text_of(app).startswith("a Add"), "all keys are shown")
