"""How the wizard's steps look, to the letter. After a change that is meant: ``pytest --snapshot-update`` on it."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.data.row_preview import ShownPiece, ShownRow
from engine.errors import DoesNotFit
from engine.planner import PhasePrediction, plan, run_folder
from engine.settings import profiles
from tests.tinydistill_tui.fixtures import GIB, NOW
from tests.tinydistill_tui.screen import text_of, until
from tests.tinydistill_tui.wizard import choose, to_the_plan, until_data, until_models
from tinydistill_tui.app import TinyDistillApp
from tinydistill_tui.screens import data as data_screen
from tinydistill_tui.screens import planning
from tinydistill_tui.screens.profiles import ProfilesScreen
from tinydistill_tui.view import model_facts
from tinydistill_tui.widgets import setting_editor
from tinydistill_tui.work import first_rows

pytestmark = pytest.mark.usefixtures("same_machine")

ROW = ShownRow(
    128,
    128,
    (
        ShownPiece("border", "assert"),
        ShownPiece("learned", "Assert statements are a convenient way to insert debugging assertions.<|endoftext|>"),
        ShownPiece("border", "assignment"),
        ShownPiece("learned", "Assignment statements are used to (re)bind names to values"),
    ),
)
SCENES = ["welcome", "models", "data", "plan", "editing", "misfit", "profiles"]


def plan_of_fixed_figures(*arguments, **options):
    """The planner's plan, with figures that do not move when its formulas do."""
    planned = plan(*arguments, **options)
    parts = {"weights": 100 * 2**20, "activations": 300 * 2**20}
    predicted = {
        "teacher": PhasePrediction(400 * 2**20, 60, 20, parts, 400 * 2**20),
        "student": PhasePrediction((9 if planned.misfit else 1) * GIB, 120, 40, parts, GIB),
    }
    reasons = {
        "record_size": "about 29 bytes a token",
        "samples": "all",
        "student_layers": "half of 8 layers",
        "student_batch": "1.0 GiB of 6.8 GiB; more is hardly faster",
        "teacher_batch": "the fastest that fits: 400 MiB of 6.8 GiB",
        "gradient_checkpointing": "1.0 GiB fit; it would save 110 MiB and take a third longer",
        "layer_by_layer": "the whole teacher fits: 400 MiB of 6.8 GiB",
        "optimizer": "32-bit states of 22.3 MiB fit; 8-bit ones are slower on a CPU",
    }
    choices = tuple(replace(each, reason=reasons.get(each.field, each.reason)) for each in planned.choices)
    misfit = planned.misfit and DoesNotFit("The student phase needs 9.0 GiB.", "", "It fits with --student_batch 8.")
    return replace(planned, predicted=predicted, disk_bytes=GIB, choices=choices, misfit=misfit)


async def go_to(app, pilot, scene):
    """Go to a scene from the first screen."""
    if scene == "profiles":
        app.push_screen(ProfilesScreen(app.screen.draft))
        await until(pilot, lambda: "small sets" in text_of(app), "the profile is shown")
    elif scene == "models":
        await pilot.press("enter")
        await until_models(app, pilot)
    elif scene == "data":
        await pilot.press("enter")
        await until_models(app, pilot)
        await pilot.press("enter")
        await until_data(app, pilot)
        await until(pilot, lambda: "Records on disk" in text_of(app), "the rows are counted")
        await until(pilot, lambda: "First rows" in text_of(app), "the first rows are shown")
    elif scene != "welcome":
        await to_the_plan(app, pilot)
        if scene == "editing":
            await choose(app, pilot, "student_batch")
            await pilot.press("enter")
    await pilot.pause(0.1)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize("scene", SCENES)
def test_screen_looks_as_it_did(scene, size, snap_compare, monkeypatch):
    monkeypatch.setenv("TINYDISTILL_RUNS", "/home/ada/runs")
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "0412")
    monkeypatch.setattr(profiles, "names", lambda: ["small"])
    monkeypatch.setattr(profiles, "load", lambda name: {"demo": True, "student_batch": 8})
    monkeypatch.setattr(profiles, "folder", lambda: Path("/home/ada/.config/tinydistill/profiles"))
    monkeypatch.setattr(data_screen, "ROWS_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(first_rows, "make", lambda *_: ([ROW], ""))
    for module in (planning, data_screen, model_facts, setting_editor):
        monkeypatch.setattr(module, "plan", plan_of_fixed_figures)
    values = {"demo": True, **({"student_batch": 3999} if scene == "misfit" else {})}
    app = TinyDistillApp(values, options={"no_animation": True}, clock=lambda: NOW)

    async def go(pilot):
        await until(pilot, lambda: app.screen.machine is not None, "the machine is measured")
        await go_to(app, pilot, scene)

    assert snap_compare(app, run_before=go, terminal_size=size)
