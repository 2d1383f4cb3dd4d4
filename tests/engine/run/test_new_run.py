"""A run that is started from a plan has that plan's budget, while the memory for it is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.machine.hardware import detect
from engine.run import launch
from engine.settings.config import RunConfig
from tests.tiny import tiny_model

GIB = 2**30


@pytest.mark.parametrize(
    ("free_at_the_start", "budget_of"),
    [(7.7, "seen"), (9.0, "seen"), (7.5, "now")],
)
@pytest.mark.usefixtures("machine_is_measured")
def test_a_run_has_the_budget_of_the_plan_that_the_user_saw(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_at_the_start: float, budget_of: str
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("A river and a stone, seven quiet maps under paper birds. " * 400)
    seen = replace(detect(tmp_path), available_bytes=8 * GIB, gpus=())
    now = replace(seen, available_bytes=int(free_at_the_start * GIB))
    for module in ("engine.run.launch", "engine.machine.hardware"):
        monkeypatch.setattr(f"{module}.detect", lambda path=None: now)
    asked = RunConfig(
        teacher=str(tiny_model("llama")),
        student="from-teacher",
        data=str(text),
        output_dir=tmp_path / "run",
        threads=1,
        device="cpu",
    )
    found = launch.new_run(asked, seen).settings.ram_budget
    elsewhere = asked.model_copy(update={"output_dir": tmp_path / "other"})
    planned = launch.checked_plan(elsewhere, hardware={"seen": seen, "now": now}[budget_of])
    assert found == planned.settings.ram_budget
