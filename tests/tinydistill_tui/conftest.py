"""Screens are the same everywhere: the clock is in UTC, and runs are looked for in a folder of the test's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinydistill_tui import watcher


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("TINYDISTILL_RUNS", str(folder))
    monkeypatch.delenv("TEXTUAL_THEME", raising=False)
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.02)
    time.tzset()
    yield folder
    monkeypatch.undo()
    time.tzset()
