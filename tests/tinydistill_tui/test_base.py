"""The frame of the screens: work that outlives what it was for, and the line of keys."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import ClassVar

import pytest
from textual import work
from textual.app import App
from textual.binding import Binding
from textual.css.query import NoMatches
from textual.widget import Widget
from textual.widgets import Button, Static
from textual.widgets._footer import FooterKey
from textual.worker import WorkerFailed

from tests.tinydistill_tui.screen import until
from tinydistill_tui.screens.base import FrameScreen
from tinydistill_tui.widgets.key_footer import KeyFooter


class _Facts(Static):
    def on_unmount(self) -> None:
        assert isinstance(self.screen, _Screen)
        self.screen.gone.set()


class _Screen(FrameScreen):
    """Its work ends when its widgets are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = threading.Event()
        self.is_missed: list[str] = []

    def compose_content(self) -> Iterable[Widget]:
        return [_Facts(id="facts"), Button("one", id="one"), Button("two", id="two")]

    @work(group="a")
    async def look(self) -> None:
        await asyncio.to_thread(self.gone.wait, 10)
        self._show("look")

    @work(thread=True, group="b")
    def look_in_a_thread(self) -> None:
        self.gone.wait(10)
        self._show("look in a thread")

    @work(group="c")
    async def look_for_nothing(self) -> None:
        self.query_one("#not-there")

    def _show(self, who: str) -> None:
        try:
            self.query_one("#facts")
        except NoMatches:
            self.is_missed.append(who)
            raise


class _App(App[None]):
    BINDINGS: ClassVar = [Binding("f2", "bell", "Second")]


@pytest.mark.parametrize("name", ["look", "look_in_a_thread"])
@pytest.mark.parametrize("ends", ["the screen", "the program"])
async def test_work_that_ends_after_its_screens_widgets_is_no_defect(name, ends):
    app, screen = _App(), _Screen()
    async with app.run_test() as pilot:
        await app.push_screen(screen)
        worker = getattr(screen, name)()
        await until(pilot, lambda: worker.is_running, "the work has begun")
        if ends == "the screen":
            await app.pop_screen()
            await pilot.pause()
    assert screen.is_missed in ([name.replace("_", " ")], [])  # cancelled, or it looked for what is gone


async def test_work_that_misses_a_widget_on_a_screen_that_is_there_is_a_defect():
    async def run() -> None:
        async with _App().run_test() as pilot:
            screen = _Screen()
            await pilot.app.push_screen(screen)
            screen.gone.set()
            screen.look_for_nothing()
            await pilot.pause()

    with pytest.raises(WorkerFailed, match="not-there"):
        await run()


async def test_keys_get_new_widgets_only_when_they_are_others():
    app = _App()
    async with app.run_test(size=(80, 24)) as pilot:
        screen = _Screen()
        await app.push_screen(screen)
        screen.gone.set()
        footer = screen.query_one(KeyFooter)
        await until(pilot, lambda: footer.query(FooterKey), "the keys are shown")
        before = list(footer.query(FooterKey))
        screen.query_one("#one").focus()
        await pilot.pause()
        screen.query_one("#two").focus()
        await pilot.pause()
        assert list(footer.query(FooterKey)) == before
        app.bind("f3", "screenshot", description="Third")
        screen.refresh_bindings()
        await until(pilot, lambda: "Third" in [key.description for key in footer.query(FooterKey)], "the new key")
