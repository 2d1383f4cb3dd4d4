"""The wizard on a machine that is always the same."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from textual import events
from textual.pilot import Pilot
from textual.widgets import Input

from engine.machine.hardware import Hardware
from engine.planner.measure import cautious_rates
from tests.tinydistill_tui.fixtures import GIB, NOW
from tests.tinydistill_tui.screen import until
from tinydistill_tui.app import COMMAND_LINE, TinyDistillApp
from tinydistill_tui.screens.data import DataScreen
from tinydistill_tui.screens.models import ModelsScreen
from tinydistill_tui.screens.plan import PlanScreen
from tinydistill_tui.screens.welcome import WelcomeScreen

MACHINE = Hardware(
    gpus=(),
    ram_bytes=16 * GIB,
    available_bytes=8 * GIB,
    cgroup_limit_bytes=None,
    cores=4,
    cpu_name="A processor at 2.10 GHz",
    cpu_features=("AVX2",),
    disk_free_bytes=61 * GIB,
    disk_path=Path("/home/ada/runs"),
    gpu_note="no NVIDIA driver is loaded",
)
RATES = cautious_rates("cpu", 4)


@contextlib.asynccontextmanager
async def wizard(
    values: dict[str, Any] | None = None,
    size: tuple[int, int] = (80, 24),
    source: str = COMMAND_LINE,
    **options: Any,
) -> AsyncIterator[tuple[TinyDistillApp, Pilot[int]]]:
    """The app at its first screen, with the machine measured."""
    app = TinyDistillApp(values, source=source, options={"no_animation": True, **options}, clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.screen.machine is not None, "the machine is measured")
        yield app, pilot


async def until_models(app: TinyDistillApp, pilot: Pilot[int]) -> ModelsScreen:
    """Wait for the models, read."""
    await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and app.screen.facts is not None, "models are read")
    assert isinstance(app.screen, ModelsScreen)
    return app.screen


async def until_data(app: TinyDistillApp, pilot: Pilot[int]) -> DataScreen:
    """Wait for the data, looked at."""
    await until(
        pilot, lambda: isinstance(app.screen, DataScreen) and app.screen.found is not None, "the data is looked at"
    )
    assert isinstance(app.screen, DataScreen)
    return app.screen


async def until_plan(app: TinyDistillApp, pilot: Pilot[int]) -> PlanScreen:
    """Wait for the plan of what was typed."""
    await until(pilot, lambda: isinstance(app.screen, PlanScreen) and app.screen.up_to_date, "the plan is made")
    assert isinstance(app.screen, PlanScreen)
    return app.screen


async def until_welcome(app: TinyDistillApp, pilot: Pilot[int]) -> WelcomeScreen:
    """Wait for the first screen."""
    await until(pilot, lambda: isinstance(app.screen, WelcomeScreen), "the first screen is shown")
    assert isinstance(app.screen, WelcomeScreen)
    return app.screen


async def paste(app: TinyDistillApp, pilot: Pilot[int], text: str) -> None:
    """Put a long text into the field that has the focus, as a terminal does it; a key for each sign takes seconds."""
    field = app.focused
    assert isinstance(field, Input)
    app.post_message(events.Paste(text))
    await until(pilot, lambda: text in field.value, "the text is in the field")
    await app._keys._heard()  # the field tells the screen, a widget at a time


async def choose(app: TinyDistillApp, pilot: Pilot[int], setting: str) -> None:
    """Put the plan's cursor on a setting, with the arrows."""
    screen = await until_plan(app, pilot)
    for _ in range(60):
        if screen.chosen is not None and screen.chosen.field == setting:
            return
        await pilot.press("down")
    raise AssertionError(f"there is no row {setting}")


async def to_the_plan(app: TinyDistillApp, pilot: Pilot[int]) -> PlanScreen:
    """Enter, Enter, Enter."""
    await pilot.press("enter")
    await until_models(app, pilot)
    await pilot.press("enter")
    await until_data(app, pilot)
    await pilot.press("enter")
    return await until_plan(app, pilot)
