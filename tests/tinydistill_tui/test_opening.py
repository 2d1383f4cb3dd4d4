"""The first frame: it stands before the engine's settings, the planner and the screens are imported."""

import json

import pytest

from tests.tinydistill_tui.fixtures import make_run
from tests.tinydistill_tui.terminal import terminal
from tinydistill_tui.opening import PURPOSE

# In place of the import behind the first frame, it writes down what was imported before it.
PROGRAM = """
import json, os, sys
from tinydistill_tui import app, cli
async def stop(self):
    with open(os.environ["SEEN"], "w") as file:
        json.dump(sorted(sys.modules), file)
    self.exit(0)
app.TinyDistillApp._import_screens = stop
sys.exit(cli.main(sys.argv[1:]))
"""
LATE = ("pydantic", "tomllib", "engine.config", "engine.planner", "engine.launch", "engine.models", "engine.data",
        "engine.hardware", "engine.supervisor", "tinydistill_tui.screens", "tinydistill_tui.dialogs",
        "tinydistill_tui.routes", "tinydistill_tui.palette", "tinydistill_tui.draft", "tinydistill_tui.command",
        "rich.progress", "numpy", "torch")  # fmt: skip


@pytest.mark.parametrize("words", [[], ["--ascii"], ["--no-mouse", "--no_animation"]])
def test_first_frame_stands_before_engine_and_screens_are_imported(tmp_path, words):
    seen = tmp_path / "modules.json"
    with terminal(words, code=PROGRAM, SEEN=str(seen)) as term:
        assert term.wait() == 0
        assert PURPOSE in term.text()
    modules = json.loads(seen.read_text())
    assert [name for name in modules if name.startswith(LATE)] == []


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
