"""Back-off where other programs have taken memory since the run was planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.channel.events import EventWriter, read_events
from engine.errors import EXIT_OUT_OF_MEMORY
from engine.jobs import Job
from engine.machine import hardware
from engine.planner.footprint import context_bytes_on, student_footprint
from engine.planner.models import describe
from engine.planner.phase_settings import StudentSetting
from engine.run import room
from engine.run.control import RunControl
from engine.run.folder import Run
from engine.run.phase_watch import Ending
from engine.run.walk import Walk
from tests.engine.planner.machines import LAPTOP_GPU
from tests.engine.run.test_folder import make_run
from tests.tiny import tiny_model

LARGE: dict[str, Any] = {"student_batch": 64, "teacher_batch": 64, "sequence_length": 4096, "keep_memory": False}


@pytest.fixture
def models() -> dict[str, str]:
    return {"teacher": str(tiny_model("llama")), "student": str(tiny_model("llama", num_layers=2))}


def backed_off(run: Run, phase: str) -> list[dict[str, Any]]:
    """The changes of a phase that has not enough memory once."""
    events, codes = EventWriter(run.events_path), iter([EXIT_OUT_OF_MEMORY, 0])

    def ends(job: Job) -> Ending:
        code = next(codes)
        if code == 0:
            run.finish_phase(job.name, {})
        return Ending(code)

    Walk(run, events, RunControl(run.control_path, events), ends).do(phase)
    return [event for event in read_events(run.events_path) if event["kind"] == "back_off"]


def on_device(run: Run, **values: object) -> int:
    job = run.job("student").changed(values)
    return student_footprint(describe(job.student), StudentSetting.of(job)).peak_bytes  # type: ignore[arg-type]


def test_a_student_goes_to_the_batch_that_fits_what_is_free_now(tmp_path: Path, models, monkeypatch) -> None:
    run = make_run(tmp_path / "run", **models, **LARGE)
    monkeypatch.setattr(hardware, "available_bytes", lambda: on_device(run, student_batch=4))
    assert [(event["field"], event["from"], event["to"]) for event in backed_off(run, "student")] == [
        ("student_batch", 64, 4),
        ("gradient_accumulation", 1, 16),
    ]


def test_a_student_on_a_gpu_goes_by_what_is_free_there(tmp_path: Path, models, monkeypatch) -> None:
    run = make_run(tmp_path / "run", **models, **LARGE, device="cuda:0")
    free = on_device(run, student_batch=8) + context_bytes_on(LAPTOP_GPU)
    monkeypatch.setattr(room, "gpu_of", lambda device: replace(LAPTOP_GPU, free_bytes=free))
    assert backed_off(run, "student")[0]["to"] == 8


def test_a_teacher_that_can_only_be_streamed_is_streamed_at_once(tmp_path: Path, models, monkeypatch) -> None:
    run = make_run(tmp_path / "run", **models, **LARGE)
    monkeypatch.setattr(hardware, "available_bytes", lambda: 2**20)
    assert [(event["field"], event["to"]) for event in backed_off(run, "teacher")] == [
        ("teacher_batch", 1),
        ("layer_by_layer", True),
    ]


@pytest.mark.parametrize("phase", ["teacher", "student"])
def test_without_a_model_one_step_is_taken(tmp_path: Path, monkeypatch, phase: str) -> None:
    run = make_run(tmp_path / "run", teacher=str(tmp_path / "gone"), student=str(tmp_path / "gone too"), **LARGE)
    monkeypatch.setattr(hardware, "available_bytes", lambda: 2**20)
    assert backed_off(run, phase)[0]["to"] == 32


def test_with_enough_memory_one_step_is_taken(tmp_path: Path, models) -> None:
    run = make_run(tmp_path / "run", **models, **{**LARGE, "sequence_length": 64})
    assert backed_off(run, "student")[0]["to"] == 32
