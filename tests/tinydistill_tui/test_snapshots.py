"""How the screens look, to the letter. After a change that is meant: ``pytest --snapshot-update`` on this file."""

import contextlib
import fcntl
import shutil
import tempfile
from pathlib import Path

import pytest
from textual.widgets import Input

from tests.tinydistill_tui.fixtures import NOW, held, make_run
from tests.tinydistill_tui.screen import text_of, until
from tinydistill_tui.app import TinyDistillApp
from tinydistill_tui.screens.finish import FinishScreen
from tinydistill_tui.screens.runs import RunsScreen

FOLDER = Path(tempfile.gettempdir()) / "tinydistill-snapshots"  # paths are on the screens: they must be the same always
LIVE = ("scoring", "training", "paused", "backed-off")


@pytest.fixture
def fixed_folder(monkeypatch):
    with FOLDER.with_suffix(".lock").open("w") as lock:  # for the tests of another checkout, which take the same place
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(FOLDER, ignore_errors=True)
        monkeypatch.setenv("TINYDISTILL_RUNS", str(FOLDER))
        yield FOLDER
        shutil.rmtree(FOLDER, ignore_errors=True)


@pytest.mark.parametrize(
    ("name", "scene", "size", "keys"),
    [
        ("training", "training", (80, 24), ()),
        ("training-wide", "training", (120, 40), ()),
        ("training-short", "training", (60, 16), ()),
        ("training-ascii", "training", (80, 24), ()),
        ("training-no-color", "training", (80, 24), ()),
        ("scoring", "scoring", (80, 24), ()),
        ("backed-off", "backed-off", (80, 24), ()),
        ("leave", "training", (80, 24), ("q",)),
        ("filter", "training", (80, 24), ("slash", *"warn")),
        ("failed", "failed", (80, 24), ()),
        ("done", "done", (80, 24), ()),
        ("done-wide", "done", (120, 40), ()),
        ("worse", "worse", (80, 24), ()),
        ("runs", "runs", (80, 24), ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_looks_as_it_did(snap_compare, monkeypatch, fixed_folder, name, scene, size, keys):
    if name == "training-no-color":
        monkeypatch.setenv("NO_COLOR", "1")
    path = make_run(fixed_folder, "notes-0412", "training" if scene == "runs" else scene)
    if scene == "runs":
        for other in ("stopped", "failed", "done", "lost"):
            make_run(fixed_folder, f"letters-{other}", other)
    app = TinyDistillApp(
        attach=path, options={"no_animation": True, "ascii": name == "training-ascii"}, clock=lambda: NOW
    )

    async def ready(pilot):
        if scene == "runs":
            app.switch_mode("runs")
            await until(pilot, lambda: isinstance(app.screen, RunsScreen) and len(app.screen.summaries) == 5, "read")
        elif scene in ("done", "failed", "worse"):
            await until(pilot, lambda: isinstance(app.screen, FinishScreen), "the end is shown")
        else:
            await until(pilot, lambda: app.screen.view.events > 0 and "h" in text_of(app).splitlines()[0], "read")
        await pilot.pause(0.3)
        for field in app.screen.query(Input):
            field.cursor_blink = False
        for key in keys:
            await pilot.press(key)
        await pilot.pause(0.3)

    with held(path) if scene in LIVE or scene == "runs" else contextlib.nullcontext():
        assert snap_compare(app, terminal_size=size, run_before=ready)
