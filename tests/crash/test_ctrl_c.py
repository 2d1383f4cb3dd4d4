"""Ctrl-C in a headless run: once stops in order, twice leaves at once, and the run still stops in order."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from engine.run.folder import Run
from tests.end_to_end.program import QUICK, events, run, start, write_texts
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow


def test_ctrl_c_twice_leaves_at_once_and_the_run_continues_from_there(tmp_path: Path) -> None:
    words = ["--teacher", tiny_model("llama"), "--student", "from-teacher", "--student_layers", 2]
    words += ["--steps", 3000, "--data", write_texts(tmp_path / "data"), "--output_dir", tmp_path / "run", *QUICK]
    child = start(*words, "--json")
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line)["kind"] == "metric":
            break
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGINT)
    time.sleep(0.05)
    if child.poll() is None:  # both may arrive as one
        child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 130
    deadline = time.monotonic() + 120
    while Run.open(tmp_path / "run").is_live() and time.monotonic() < deadline:
        time.sleep(0.1)
    last = events(tmp_path / "run")[-1]
    assert (last["kind"], last["status"], last["exit_code"]) == ("run_finished", "stopped", 130)
    step = max(int(path.name[-8:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    resumed = run("--resume", "--output_dir", tmp_path / "run", "--steps", step + 5)
    assert resumed.returncode == 0, resumed.stderr
    assert "stops after its current step" in said or "Stopped" in said
