"""Real runs that meet less memory than was planned: the phase dies, the supervisor backs off, the student is done."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.planner import Plan, plan
from engine.planner.measure import cautious_rates
from engine.run.folder import Run
from engine.settings.config import RunConfig
from tests.end_to_end.program import ROOT, events, write_texts
from tests.memory_cap import MemoryCap, can_cap
from tests.tiny import tiny_model

MIB = 2**20
ROWS = 32  # of an optimizer step; at first all of them at once

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' limits")]


def planned(folder: Path, rows: int) -> tuple[RunConfig, Plan]:
    """A student whose activations are most of its memory, ``rows`` at a time, planned with all of this machine."""
    config = RunConfig.parse(
        {
            "teacher": str(tiny_model("llama")), "student": str(tiny_model("llama", num_layers=8, hidden_size=256)),
            "data": str(folder / "texts.jsonl"), "output_dir": folder / "run", "device": "cpu", "threads": 1,
            "precision": "fp32", "sequence_length": 128, "student_batch": rows, "gradient_accumulation": ROWS // rows,
            "samples": 2 * ROWS, "steps": 2, "optimizer": "adamw", "gradient_checkpointing": False,
        }
    )  # fmt: skip
    return config, plan(config, machine=cautious_rates("cpu", 1))


def finish(folder: Path, limit: Callable[[], None]) -> tuple[int, Run]:
    """Plan without the limit, then let the supervisor live under it; returns its exit code."""
    config, whole = planned(folder, ROWS)
    run = Run.create(folder / "run", config, whole)
    done = subprocess.run(
        [sys.executable, "-m", "engine.run.supervisor", str(run.path)], cwd=ROOT, preexec_fn=limit, timeout=900
    )
    return done.returncode, Run.open(run.path)


def check(code: int, run: Run, reason: str) -> None:
    """It backed off for this reason, kept the effective batch, and finished."""
    told = events(run.path)
    assert code == 0, [event for event in told if event["kind"] in ("error", "log", "back_off")]
    steps = [event for event in told if event["kind"] == "back_off"]
    assert steps, "it was never short of memory: the limit is too high to show anything"
    assert all(reason in event["reason"] for event in steps)
    sizes = [ROWS, *(event["to"] for event in steps if event["field"] == "student_batch")]
    assert sizes == sorted(sizes, reverse=True)
    assert run.settings.student_batch == sizes[-1] < ROWS
    assert sizes[-1] * (run.settings.gradient_accumulation or 1) == ROWS
    finished = [event for event in told if event["kind"] == "run_finished"]
    assert finished[-1]["status"] == "done"
    report: dict[str, Any] = json.loads((run.path / "report.json").read_text())
    assert report["student_after"]["holdout_loss"] > 0
    assert (run.path / "student" / "model.safetensors").is_file()


@pytest.mark.skipif(not can_cap(), reason="no memory control group can be made here")
def test_a_run_under_a_limit_that_the_plan_does_not_know_is_killed_and_backs_off_and_finishes(tmp_path: Path) -> None:
    write_texts(tmp_path, 300)
    half, quarter = (planned(tmp_path, ROWS // part)[1].predicted["student"].peak_bytes for part in (2, 4))
    assert half - quarter > 64 * MIB
    supervisor = 40 * MIB
    with MemoryCap.make((half + quarter) // 2 + supervisor) as cap:
        code, run = finish(tmp_path, cap.enter)
        kills = cap.kills
    check(code, run, "killed")
    assert kills >= 1


def test_a_run_whose_allocator_gives_up_backs_off_and_finishes(tmp_path: Path) -> None:
    write_texts(tmp_path, 300)
    half, quarter = (
        plan_.predicted["student"].peak_bytes - plan_.predicted["student"].parts["other"]
        for plan_ in (planned(tmp_path, ROWS // part)[1] for part in (2, 4))
    )
    limit = _data_bytes_of_an_interpreter() + (half + quarter) // 2 + 64 * MIB
    code, run = finish(tmp_path, lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    check(code, run, "out of memory")


def _data_bytes_of_an_interpreter() -> int:
    """Memory that the limit counts in a process that has only imported the student phase."""
    program = "import engine.phases.student\nprint(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return next(int(line.split()[1]) * 1024 for line in done.stdout.splitlines() if line.startswith("VmData"))
