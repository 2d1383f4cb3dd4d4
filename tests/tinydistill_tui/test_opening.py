"""The first frame: it stands before the engine's settings, the planner and the screens are imported."""

import gc
import json
import sys

import pytest

from tests.tinydistill_tui.fixtures import make_run
from tests.tinydistill_tui.screen import lines_of, text_of, until
from tests.tinydistill_tui.terminal import terminal
from tests.tinydistill_tui.wizard import wizard
from tinydistill_tui.app import TinyDistillApp
from tinydistill_tui.terminal.opening import PURPOSE

# In place of the import behind the first frame, it writes down what was imported before it.
PROGRAM = """
import gc, json, os, sys
from tinydistill_tui import app, cli
async def stop(self):
    with open(os.environ["SEEN"], "w") as file:
        json.dump([] if gc.isenabled() else sorted(sys.modules), file)
    self.exit(0)
app.TinyDistillApp._import_screens = stop
sys.exit(cli.main(sys.argv[1:]))
"""
LATE = ("pydantic", "tomllib", "engine.settings.config", "engine.planner", "engine.run.launch", "engine.models",
        "engine.data", "engine.machine.hardware", "engine.run.supervisor", "tinydistill_tui.screens",
        "tinydistill_tui.dialogs", "tinydistill_tui.routes", "tinydistill_tui.palette", "tinydistill_tui.work.draft",
        "tinydistill_tui.command", "rich.progress", "numpy", "torch")  # fmt: skip


@pytest.mark.parametrize("words", [[], ["--ascii"], ["--no-mouse", "--no_animation"]])
def test_first_frame_stands_before_engine_and_screens_are_imported(tmp_path, words):
    seen = tmp_path / "modules.json"
    with terminal(words, code=PROGRAM, SEEN=str(seen)) as term:
        assert term.wait() == 0
        assert PURPOSE in term.text()
    modules = json.loads(seen.read_text())
    assert modules, "garbage is looked for among the imports"
    assert [name for name in modules if name.startswith(LATE)] == []


async def test_rows_of_the_first_frame_stay_where_they_are_when_the_screen_comes(monkeypatch):
    async def never(self):
        pass

    monkeypatch.setattr(TinyDistillApp, "_import_screens", never)
    app = TinyDistillApp(options={"no_animation": True})
    monkeypatch.delitem(sys.modules, "tinydistill_tui.routes")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: PURPOSE in text_of(app), "the first frame")
        first = lines_of(app)[:4]
    monkeypatch.undo()
    async with wizard() as (app, _):
        assert lines_of(app)[:4] == first


async def test_garbage_is_looked_for_once_the_first_screen_is_there():
    gc.disable()
    try:
        async with wizard():
            assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_keys_that_come_with_the_first_frame_are_the_first_screens():
    with terminal([]) as term:
        term.wait_for(PURPOSE)
        term.type("?")
        term.wait_for("Esc closes", 60)
        term.type("\x1b")
        term.type("q")
        assert term.wait() == 0


def test_ctrl_c_leaves_while_the_screens_are_imported(tmp_path):
    slow = "import asyncio\n" + PROGRAM.replace("self.exit(0)", "await asyncio.sleep(60)")
    with terminal([], code=slow, SEEN=str(tmp_path / "modules.json")) as term:
        term.wait_for(PURPOSE)
        term.type("\x03")
        assert term.wait() == 0


def test_a_run_is_named_before_it_is_read(runs_folder, tmp_path):
    path = make_run(runs_folder, "notes-0412", "stopped")
    with terminal(["--attach", str(path)], code=PROGRAM, SEEN=str(tmp_path / "modules.json")) as term:
        assert term.wait() == 0
        assert "notes-0412  opening" in term.text()
