"""Screens are the same everywhere: the clock is in UTC, and runs are looked for in a folder of the test's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import textual._wait
from textual.pilot import Pilot

from engine.data import survey
from engine.data.document import Document
from engine.machine import hardware
from engine.planner import measure
from engine.run import launch
from tests.tinydistill_tui.screen import press_and_wait
from tests.tinydistill_tui.styles import parse_once
from tests.tinydistill_tui.wizard import MACHINE, RATES
from tinydistill_tui import routes
from tinydistill_tui.screens import data, models, planning
from tinydistill_tui.widgets import setting_editor
from tinydistill_tui.work import busy, watcher


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("TINYDISTILL_RUNS", str(folder))
    monkeypatch.delenv("TEXTUAL_THEME", raising=False)
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(busy, "load", lambda: 0.0)  # what else this machine does is no part of a screen's look
    # Timers that wait for the user to stop typing need not wait in a test, nor Textual's pilot for a process at rest:
    # it has waited for every message of the screen by then, and each pause would cost 40 ms and more.
    monkeypatch.setattr(textual._wait, "SLEEP_GRANULARITY", 0.004)
    monkeypatch.setattr(textual._wait, "SLEEP_IDLE", 0.002)
    monkeypatch.setattr(setting_editor, "TRY_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(Pilot, "press", press_and_wait)
    parse_once()
    assert routes.follow  # the screens are imported: an app shows them at once
    for module, name in (
        (models, "LOOK_AFTER_SECONDS"),
        (data, "LOOK_AFTER_SECONDS"),
        (planning, "PLAN_AFTER_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.01)
    # A process that loads a tokenizer costs seconds: only where it is looked for.
    monkeypatch.setattr(data, "ROWS_AFTER_SECONDS", 3_600.0)
    time.tzset()
    yield folder
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wizard finds the same machine everywhere, and text that costs no time to read."""
    monkeypatch.setattr(hardware, "detect", lambda path: MACHINE)
    monkeypatch.setattr(measure, "machine_rates", lambda **_: RATES)
    monkeypatch.setattr(launch, "machine_rates", lambda **_: RATES)
    # Python's own documentation takes seconds to read, and here only its beginning is shown.
    documents = [
        Document(f"topic {number}", "Function objects are created by function definitions.\n" * 20)
        for number in range(8)
    ]
    monkeypatch.setattr(survey, "python_documents", lambda: iter(documents))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder with text, and a file that is none."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(40):
        (folder / f"note-{number:02d}.md").write_text(
            f"# Note {number}\n\n" + "We left on Friday with the train. " * 60
        )
    (folder / "picture.bin").write_bytes(b"\0\1")
    return folder
