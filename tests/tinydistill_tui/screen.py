"""Looking at a running app: its text, and waiting until something is so."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from tests.tinydistill_tui.fixtures import NOW
from tinydistill_tui.app import TinyDistillApp
from tinydistill_tui.navigation import OpenRun
from tinydistill_tui.terminal.key_queue import ASKED

_press = Pilot.press


def lines_of(app: TinyDistillApp) -> list[str]:
    """The text on the terminal, line by line."""
    return [strip.text for strip in app.screen._compositor.render_strips()]


def text_of(app: TinyDistillApp) -> str:
    """The text on the terminal."""
    return "\n".join(lines_of(app))


def words_of(app: TinyDistillApp) -> str:
    """The text on the terminal without its line ends: a path before a sentence decides where the sentence wraps."""
    return " ".join(text_of(app).split())


async def until(pilot: Pilot[Any], condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    """Wait until something is so; fails with the screen's text."""
    until_when = time.monotonic() + seconds
    while time.monotonic() < until_when:
        with contextlib.suppress(Exception):  # a widget that is not there yet
            if condition():
                await pilot.pause()
                return
        await pilot.pause(0.05)
    raise AssertionError(f"after {seconds} s not so: {what}\n{text_of(pilot.app)}")  # type: ignore[arg-type]


def all_keys_handled(app: TinyDistillApp) -> bool:
    """Whether the app's queue of keys is empty, and the last one has been handled."""
    return app._keys._task is None and not app._keys._keys


async def press_and_wait(self: Pilot[Any], *keys: str) -> None:
    """Press keys as ``Pilot.press`` does, and wait until the app has handled each of them.

    The app hands out keys one after the other (``KeyQueue``), so the last one may be handled some time after it was
    pressed. A key that starts work is handled when the work is done. A test may hold that work up, so there the wait
    ends after a second.
    """
    await _press(self, *keys)
    app = self.app
    if not isinstance(app, TinyDistillApp):
        return
    began = time.monotonic()
    while app.is_running and not app.leaving and not all_keys_handled(app):
        at_work = any(worker.group in ASKED and not worker.is_finished for worker in app.workers)
        if time.monotonic() > began + (1 if at_work else 60):
            return
        await asyncio.sleep(0.004)
    await self._wait_for_screen()


async def look_at(app: TinyDistillApp, pilot: Pilot[Any], path: Path) -> None:
    """Open another run in an app that is there, and wait until it is read and, if it has ended, its end is shown."""
    from tinydistill_tui.screens.finish import FinishScreen
    from tinydistill_tui.screens.run import RunScreen

    await app.navigate(OpenRun(path))

    def read() -> bool:
        screen = app.screen_stack[0]
        assert isinstance(screen, RunScreen)
        ended = screen.view.finished in ("done", "failed")
        is_read = screen.path == path and screen.view.events > 0 and screen.read_share >= 1
        return is_read and (not ended or isinstance(app.screen, FinishScreen))

    await until(pilot, read, f"{path.name} is read")
    await until_keys(app, pilot)


async def until_keys(app: TinyDistillApp, pilot: Pilot[Any], *words: str) -> None:
    """Wait until the line of keys has all of the words.

    Textual's footer takes the line down and makes it again whenever a key comes or goes, and it does so some time after
    the change: a test never reads the line at once.
    """

    def shown() -> bool:
        line = lines_of(app)[-1]
        return line.strip() != "" and all(word in line for word in words)

    await until(pilot, shown, f"the keys are shown: {' '.join(words)}")


@contextlib.asynccontextmanager
async def watching(
    path: Path | None, size: tuple[int, int] = (80, 24), **options: Any
) -> AsyncIterator[tuple[TinyDistillApp, Pilot[int]]]:
    """An app that watches a run and has read all of it; without a path, the list of runs."""
    app = TinyDistillApp(attach=path, options={"no_animation": True, **options}, clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        if path is None:
            await until(pilot, lambda: "reading" not in text_of(app), "started")
        else:
            from tinydistill_tui.screens.finish import FinishScreen
            from tinydistill_tui.screens.run import RunScreen

            def read() -> bool:
                screen = app.screen
                return isinstance(screen, FinishScreen) or (
                    isinstance(screen, RunScreen) and screen.view.events > 0 and screen.read_share >= 1
                )

            await until(pilot, read, "the run is read")
            if (app.screen_stack[0].view.finished) in ("done", "failed"):
                await until(pilot, lambda: isinstance(app.screen, FinishScreen), "the end is shown")
        await until_keys(app, pilot)
        yield app, pilot
