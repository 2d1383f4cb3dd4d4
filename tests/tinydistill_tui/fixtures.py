"""Run folders with fixed events: the same every time, so that screens can be compared to the letter.

    path = make_run(tmp_path, "notes-0412", scene="training")
    with held(path): ...                            # a supervisor's lock

The clock of every run begins at NOW - its length; NOW is what the app's clock says.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.run.folder import Run

NOW = 1_775_998_800.0  # 2026-04-12 13:00:00 UTC
GIB = 2**30

PREDICTED = {
    "teacher": {"peak_bytes": int(1.1 * GIB), "seconds": 5700, "seconds_error": 0.25, "parts": {}},
    "student": {"peak_bytes": int(2.6 * GIB), "seconds": 7800, "seconds_error": 0.25, "parts": {}},
    "disk_bytes": int(1.4 * GIB),
}
SETTINGS = {
    "teacher": "Qwen/Qwen2.5-1.5B-Instruct",
    "student": "Qwen/Qwen2.5-0.5B",
    "data": "/home/ada/notes",
    "sequence_length": 1024,
    "device": "cuda:0",
    "student_batch": 2,
    "memory_budget": 3 * GIB,
    "epochs": 1,
}
CHOICES = [
    {"field": "student_batch", "value": 2, "by": "user", "reason": "planner: 4 needs 3.2 GiB"},
    {"field": "record_size", "value": 12, "by": "planner", "reason": "45 bytes a token"},
]
REPORT = {
    "teacher": {"holdout_loss": 2.104, "perplexity": 8.20, "kl_to_teacher": 0.0, "top1_agreement": 1.0, "ece": 0.031},
    "student_before": {
        "holdout_loss": 2.918,
        "perplexity": 18.5,
        "kl_to_teacher": 0.742,
        "top1_agreement": 0.584,
        "ece": 0.058,
    },
    "student_after": {
        "holdout_loss": 2.397,
        "perplexity": 10.99,
        "kl_to_teacher": 0.271,
        "top1_agreement": 0.719,
        "ece": 0.035,
    },
    "gap_closed": 0.64,
    "cache": {"tokens": 9_400_000, "bytes": 324_000_000, "bytes_per_token": 34.5, "shards": 5},
    "phases": {
        "teacher": {
            "seconds": 5590.0,
            "tokens": 9_400_000,
            "tokens_per_second": 1681.6,
            "predicted_peak_bytes": int(1.1 * GIB),
            "peak_bytes": int(1.08 * GIB),
            "device_peak_bytes": None,
        },
        "student": {
            "seconds": 7760.0,
            "tokens": 9_400_000,
            "tokens_per_second": 1211.3,
            "predicted_peak_bytes": int(2.6 * GIB),
            "peak_bytes": int(2.55 * GIB),
            "device_peak_bytes": None,
        },
    },
    "samples": [
        {
            "prompt": "The best time to visit Porto is",
            "teacher": "between May and September, although the river is fine in the fog of winter too",
            "before": "the best time to visit Porto is the best time to visit Porto is the best",
            "after": "late spring, when the river is warm enough for a short swim before breakfast",
        },
        {
            "prompt": "On Monday we",
            "teacher": "went to the market and bought figs",
            "before": "Monday Monday Monday",
            "after": "took the early train",
        },
    ],
    "data": {},
    "config": SETTINGS,
    "choices": CHOICES,
    "versions": {"tinydistill": "0.1.0"},
    "hardware": {},
}
SCENES = (
    "starting",
    "preparing",
    "scoring",
    "training",
    "paused",
    "backed-off",
    "stopped",
    "failed",
    "done",
    "worse",
    "lost",
)


class Script:
    """Events with a clock of their own."""

    def __init__(self, seconds_ago: float) -> None:
        self.time = NOW - seconds_ago
        self.events: list[dict[str, Any]] = []

    def after(self, seconds: float, kind: str, /, **fields: Any) -> None:
        self.time += seconds
        self.events.append({"time": round(self.time, 3), "kind": kind, **fields})


def events_of(scene: str, name: str, now: float = NOW) -> list[dict[str, Any]]:
    """The events of a scene; the last one is two seconds before NOW (a day for what is over)."""
    script = Script(0)
    script.after(0, "run_started", version="0.1.0", name=name, pid=48213, host="ada", boot_id="b")
    script.after(0.1, "plan", choices=CHOICES, predicted=PREDICTED)
    _scene(script, scene)
    shift = (
        now - 2 - script.time
        if scene not in ("stopped", "failed", "done", "worse", "lost")
        else now - 86_400 - script.time
    )
    for event in script.events:
        event["time"] = round(event["time"] + shift, 3)
    return script.events


def _scene(script: Script, scene: str) -> None:
    if scene == "starting":
        return
    script.after(0.2, "phase_started", phase="prepare")
    for number in range(1, 11):
        script.after(
            4.2,
            "progress",
            phase="prepare",
            done=number * 918,
            total=9180,
            unit="rows",
            rate=218.0,
            eta_seconds=(10 - number) * 4.2,
        )
        script.after(
            0,
            "memory",
            phase="prepare",
            bytes=int(0.04 * number * GIB),
            peak_bytes=int(0.04 * number * GIB),
            budget_bytes=3 * GIB,
            device_bytes=None,
            system_available_bytes=9 * GIB,
        )
    if scene == "preparing":
        return
    script.after(0.1, "phase_finished", phase="prepare", seconds=42.3, peak_bytes=int(0.4 * GIB))
    script.after(0.1, "phase_started", phase="teacher")
    waves = 12 if scene == "scoring" else 25
    for number in range(1, waves + 1):
        script.after(
            223,
            "progress",
            phase="teacher",
            done=number * 376_000,
            total=9_400_000,
            unit="tokens",
            rate=1681.6,
            eta_seconds=(25 - number) * 223.6,
        )
        used = 1.05 + 0.03 * math.sin(number)
        script.after(
            0.2,
            "memory",
            phase="teacher",
            bytes=int(used * GIB),
            peak_bytes=int(1.08 * GIB),
            budget_bytes=3 * GIB,
            device_bytes=int(1.4 * GIB),
            system_available_bytes=9 * GIB,
        )
        if number % 5 == 0:
            script.after(
                0.2,
                "shard",
                phase="teacher",
                path=f"shard-{number // 5 - 1:05d}.h5",
                tokens=1_880_000,
                bytes=64_800_000,
            )
    if scene == "scoring":
        return
    script.after(1, "phase_finished", phase="teacher", seconds=5590.0, peak_bytes=int(1.08 * GIB))
    script.after(0.1, "phase_started", phase="student")
    script.after(5, "evaluation", phase="student", which="teacher", **REPORT["teacher"])
    script.after(5, "evaluation", phase="student", which="student_before", **REPORT["student_before"])
    if scene == "failed":
        script.after(
            30,
            "error",
            phase="student",
            what="There was no room to write /home/ada/runs/notes-0412/checkpoints.",
            why="The disk is full.",
            todo="Free some: tiny-distill --resume --output_dir /home/ada/runs/notes-0412",
        )
        script.after(0.2, "run_finished", status="failed", exit_code=4)
        return
    steps = 287 if scene in ("done", "worse") else 214
    for step in range(1, steps + 1):
        loss = 2.2 + 1.2 * math.exp(-step / 60) + 0.05 * math.sin(step * 1.7)
        script.after(
            27,
            "metric",
            phase="student",
            step=step,
            total_steps=287,
            loss=loss,
            ce=loss + 0.6,
            kd=loss - 0.4,
            learning_rate=2e-5 * (1 - step / 300),
            grad_norm=0.8 + 0.1 * math.sin(step),
            tokens_per_second=1211.0 + 20 * math.sin(step),
        )
        script.after(
            0,
            "progress",
            phase="student",
            done=step,
            total=287,
            unit="steps",
            rate=0.0366,
            eta_seconds=(287 - step) * 27.3,
        )
        used = 2.5 + 0.05 * math.sin(step / 3)
        script.after(
            0.2,
            "memory",
            phase="student",
            bytes=int(used * GIB),
            peak_bytes=int(2.55 * GIB),
            budget_bytes=3 * GIB,
            device_bytes=int(2.9 * GIB),
            system_available_bytes=9 * GIB,
        )
        if step % 50 == 0:
            script.after(
                1, "checkpoint", phase="student", path=f"checkpoints/step-{step:08d}", step=step, bytes=int(1.0 * GIB)
            )
            script.after(
                1,
                "evaluation",
                phase="student",
                which="student_during",
                step=step,
                holdout_loss=loss + 0.1,
                perplexity=math.exp(loss + 0.1),
            )
        if step == 120 and scene == "backed-off":
            script.after(
                1, "back_off", phase="student", reason="out of memory", field="student_batch", **{"from": 2, "to": 1}
            )
            script.after(1, "phase_started", phase="student")
    if scene == "training":
        script.after(
            1,
            "log",
            phase="student",
            level="warning",
            message="The disk is getting full: 3.1 GiB free.",
            code="disk-low",
        )
        script.after(1, "log", phase="student", level="debug", message="a detail", code="detail")
    elif scene == "paused":
        script.after(1, "control", command="pause", by="tinydistill-tui 7", accepted=True)
        script.after(0.1, "control", state="pausing")
        script.after(3, "control", phase="student", state="paused")
    elif scene == "stopped":
        script.after(1, "control", command="stop", by="tinydistill-tui 7", accepted=True)
        script.after(0.1, "control", state="stopping")
        script.after(20, "run_finished", status="stopped", exit_code=130)
    elif scene in ("done", "worse"):
        script.after(5, "evaluation", phase="student", which="student_after", **REPORT["student_after"])
        script.after(1, "phase_finished", phase="student", seconds=7760.0, peak_bytes=int(2.55 * GIB))
        script.after(0.5, "run_finished", status="done", exit_code=0)


def make_run(folder: Path, name: str = "notes-0412", scene: str = "training", now: float = NOW) -> Path:
    """A run's folder with the events of a scene, as at ``now``; its lock is free."""
    path = folder / name
    path.mkdir(parents=True)
    events = events_of(scene, name, now)
    info = {
        "format": 1,
        "name": name,
        "created": events[0]["time"] - 1,
        "version": "0.1.0",
        "asked": SETTINGS,
        "settings": SETTINGS,
        "choices": CHOICES,
        "predicted": PREDICTED,
        "versions": {},
    }
    (path / "run.json").write_text(json.dumps(info))
    append(path, events)
    (path / "run.log").write_text("")
    if scene in ("done", "worse"):
        report = json.loads(json.dumps(REPORT))
        if scene == "worse":
            report["student_after"]["holdout_loss"] = 3.1
            report["gap_closed"] = -0.22
        (path / "report.json").write_text(json.dumps(report))
        (path / "report.md").write_text("# report\n")
        (path / "student").mkdir()
    return path


def append(path: Path, events: list[dict[str, Any]]) -> None:
    """Append events to a run."""
    with (path / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the run's lock, as its supervisor would."""
    with Run(path, {}).lock():
        yield
