"""Requests of screens, carried out whatever lies on the stacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tinydistill_tui.fixtures import make_run
from tests.tinydistill_tui.screen import until
from tests.tinydistill_tui.wizard import until_data, until_models, until_plan, until_welcome, wizard
from tinydistill_tui.navigation import AskFor, GoTo, OpenRun

pytestmark = pytest.mark.usefixtures("same_machine")


@pytest.mark.parametrize("way", ["like this", "new"])
async def test_another_run_is_begun_over_the_steps_of_the_first_one(way: str, tmp_path: Path) -> None:
    done = make_run(tmp_path, scene="done")
    async with wizard({"demo": True}) as (app, pilot):
        draft = app.screen.draft  # type: ignore[attr-defined]
        await app.navigate(GoTo("models", draft))
        await until_models(app, pilot)
        await app.navigate(GoTo("data", draft))
        await until_data(app, pilot)
        await app.navigate(GoTo("plan", draft))
        await until_plan(app, pilot)
        draft.started = True  # as s does
        await app.navigate(OpenRun(done))
        if way == "new":
            await app.switch_mode("wizard")
            screen = await until_welcome(app, pilot)
            await until(pilot, lambda: len(app.screen_stack) == 1 and not screen.draft.started, "the steps are gone")
        else:
            await app.navigate(AskFor({"epochs": "3"}))
            screen = await until_models(app, pilot)
            await pilot.pause(0.2)
            assert app.screen is screen
            assert len(app.screen_stack) == 2
            assert screen.draft.get("epochs") == "3"
