"""Of a phase on a GPU, budget and prediction are of the GPU's memory, and so is what is shown beside them."""

from __future__ import annotations

from typing import Any

import pytest

from engine.channel.words import budgeted, log_line
from engine.cli.progress import _progress_line
from engine.run.pictures import draw_all
from engine.run.report import cost_in_words
from tinydistill_tui.view.run_view import RunView
from tinydistill_tui.view.watch import fold

GIB = 2**30
MAIN = {"bytes": 5 * GIB, "peak_bytes": 9 * GIB, "budget_bytes": 2 * GIB}
ON_GPU = {**MAIN, "device": "cuda:0", "device_bytes": GIB // 2, "device_peak_bytes": GIB}


@pytest.mark.parametrize(
    ("event", "sizes"),
    [
        (MAIN, (5 * GIB, 9 * GIB)),
        ({**MAIN, "device_bytes": GIB}, (5 * GIB, 9 * GIB)),  # a process on the CPU that holds a GPU's context
        (ON_GPU, (GIB // 2, GIB)),
        ({**ON_GPU, "device_bytes": None, "device_peak_bytes": None}, (None, None)),  # a driver that does not tell
        ({"device": "cuda:0", "device_bytes": "much"}, (None, None)),
        ({"bytes": float("nan"), "peak_bytes": 10**400}, (None, None)),  # a file that was changed by hand
        ({}, (None, None)),
    ],
)
def test_the_memory_that_the_budget_is_for(event: dict[str, Any], sizes: tuple[float | None, float | None]) -> None:
    assert (budgeted(event), budgeted(event, "peak_bytes")) == sizes


def _events(memory: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"time": 0.0, "kind": "run_started", "name": "r"},
        {"time": 0.0, "kind": "phase_started", "phase": "teacher"},
        *({"time": float(time), "kind": "memory", "phase": "teacher", **memory} for time in (1, 2)),
        {"time": 3.0, "kind": "phase_finished", "phase": "teacher", "seconds": 3.0, **memory},
    ]


def _shown(memory: dict[str, Any]) -> dict[str, str]:
    events = _events(memory)
    view = fold(RunView(), events)
    line = log_line(events[-1])
    assert line is not None
    phase = {"seconds": 3.0, "peak_bytes": 9 * GIB, "device_peak_bytes": memory.get("device_peak_bytes")}
    report: dict[str, Any] = {"phases": {"teacher": {"predicted_peak_bytes": GIB}}}
    return {
        "log": line.text,
        "progress": _progress_line("teacher", {"done": 1, "total": 2}, events[2]),
        "screen": str((view.memory.bytes, view.memory.peak_bytes, view.phases["teacher"].peak_bytes)),
        "picture": draw_all(events, report)["memory.svg"],
        "report": cost_in_words({**phase, "predicted_peak_bytes": GIB}),
    }


def test_main_memory_of_the_preparation_is_beside_the_curve_of_a_gpu() -> None:
    """Its budget and its peak are of another memory than those of the phases on the GPU."""
    prepared = {"bytes": 3 * GIB, "peak_bytes": 3 * GIB, "budget_bytes": GIB}
    plan = {"time": 0.0, "kind": "plan", "choices": [{"field": "device", "value": "cuda:0"}], "predicted": {}}
    before = [event | {"phase": "prepare"} for event in _events(prepared)[1:] if event["kind"] != "run_started"]
    events = [plan, *before, *_events(ON_GPU)[1:]]
    view = fold(RunView(), events)
    assert view.phases["prepare"].peak_bytes == 3 * GIB
    assert view.peak_bytes() == GIB
    assert {bucket.high for bucket in view.memory_series.buckets} == {GIB // 2}
    during = fold(RunView(), [plan, *before])
    assert (during.memory.bytes, during.memory.budget_bytes, during.peak_bytes()) == (None, None, None)
    with_the_gpus_budget = draw_all(events, {"phases": {}})["memory.svg"]
    higher = [event | {"budget_bytes": 2 * GIB} if event.get("phase") == "prepare" else event for event in events]
    assert draw_all(higher, {"phases": {}})["memory.svg"] == with_the_gpus_budget
    on_a_cpu = fold(RunView(), [event for event in events if event is not plan])
    assert on_a_cpu.peak_bytes() == 3 * GIB


def test_every_reader_shows_it() -> None:
    main, gpu = _shown(MAIN), _shown(ON_GPU)
    assert (main["log"], gpu["log"]) == ("score finished in 3 s, peak 9.0 GiB", "score finished in 3 s, peak 1.0 GiB")
    assert gpu["progress"] == "scoring 50% · peak 1.0 GiB of 2.0 GiB"
    assert gpu["screen"] == str((GIB // 2, GIB, GIB))
    assert gpu["report"] == "3 s, peak 1.0 GiB on the GPU (predicted 1.0 GiB), 9.0 GiB of main memory"
    assert main["report"] == "3 s, peak 9.0 GiB (predicted 1.0 GiB)"
    assert main["picture"] != gpu["picture"]
