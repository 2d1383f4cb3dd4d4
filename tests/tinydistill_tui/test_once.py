"""A timer that fires once fires, however long the process was held up while it was begun."""

import ast
import itertools
from pathlib import Path

import pytest
import textual.timer
from textual.app import App

import tinydistill_tui
from tests.tinydistill_tui.screen import until
from tinydistill_tui.widgets.once import after


@pytest.mark.parametrize("seconds", [0.01, 0.15, 0.3])
async def test_timer_fires_once_on_a_machine_that_is_held_up(monkeypatch, seconds):
    fired = []
    app = App()
    async with app.run_test() as pilot:
        moments = itertools.count(step=10)  # ten seconds go by between any two looks at the clock
        monkeypatch.setattr(textual.timer._time, "get_time", lambda: float(next(moments)))
        after(app, seconds, lambda: fired.append("ours"))
        await until(pilot, lambda: bool(fired), "it has fired")
        await pilot.pause(0.1)
    assert fired == ["ours"]


async def test_timer_that_is_stopped_does_not_fire():
    fired = []
    app = App()
    async with app.run_test() as pilot:
        after(app, 0.01, lambda: fired.append("stopped")).stop()
        await pilot.pause(0.1)
    assert fired == []


def test_no_screen_uses_the_timer_that_can_be_lost():
    folder = Path(tinydistill_tui.__file__).parent
    calls = [
        (path.name, node.lineno)
        for path in folder.rglob("*.py")
        if path.name != "once.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "set_timer"
    ]
    assert calls == []
