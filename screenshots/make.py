"""Make the README's screenshots from the running app, on a real run.

    python screenshots/make.py [--run RUN_DIR] [--out FOLDER]

Without ``--run`` it first makes a run of the demo, which takes some minutes. The screens in mid-run are drawn from that
run's own events, cut off where the picture is taken, with the clock standing there; nothing is invented.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BUDGET = "500MB"
FONTS = "Fira Code, DejaVu Sans Mono, FreeMono, Noto Sans Symbols 2, Apple Braille, Segoe UI Symbol, monospace"
"""Behind the first one those that have braille, in which curves are drawn."""
HERE = Path(__file__).parent
TITLES = {
    "welcome": "What this machine can do",
    "models": "Which model learns from which",
    "data": "What they read",
    "plan": "The plan, with predicted memory that moves while you edit",
    "run-scoring": "The teacher scores",
    "run-training": "The student learns",
    "result": "What came of it",
    "runs": "Every run there is",
}


def main() -> None:
    """Make every screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run; the demo is run when not given")
    parser.add_argument("--out", type=Path, default=HERE, help="where the .svg files go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tinydistill-") as folder, home(Path(folder) / "ada") as ada:
        finished = ada / ".local/share/tinydistill/runs/python-docs"
        if arguments.run:
            shutil.copytree(arguments.run, finished)
        else:
            command = [sys.executable, "-m", "engine.cli.distill", "--demo", "--output_dir", str(finished)]
            subprocess.run(command, check=True)
        asyncio.run(wizard(arguments.out))
        asyncio.run(pictures(finished, arguments.out))


@contextlib.contextmanager
def home(path: Path) -> Iterator[Path]:
    """A home of its own: no model, run or profile of the user is seen."""
    before = dict(os.environ)
    for name in [
        name for name in os.environ if name.startswith(("XDG_", "TINYDISTILL_", "TEXTUAL_", "HF_", "NO_COLOR"))
    ]:
        del os.environ[name]
    os.environ.update(HOME=str(path), TZ="UTC", TERM="xterm-256color")
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        os.environ.clear()
        os.environ.update(before)


async def wizard(out: Path) -> None:
    """The four steps, as Enter, Enter, Enter leads through them."""
    from tinydistill_tui.app import TinyDistillApp

    app = TinyDistillApp(options={"no_animation": True})
    async with app.run_test(size=(100, 32)) as pilot:
        for name in ("welcome", "models", "data", "plan"):
            await settled(pilot)
            if name == "welcome":  # so little that the plan has something to decide, as on a small machine
                await pilot.press("tab", *BUDGET, "enter")
                await settled(pilot)
            if name == "data":
                await shows(pilot, "First")
                await settled(pilot)
            if name == "plan":  # a setting that memory depends on, taken up: the bars and the box say what it comes to
                await pilot.press("down", "down", "down", "right")
                await settled(pilot)
            save(app, out, name)
            await pilot.press("enter")
        app.exit()


async def pictures(finished: Path, out: Path) -> None:
    """The run while the teacher scores, while the student learns, at its end; and the list of runs."""
    from engine.run.folder import Run

    events = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    folder = finished.parent
    for name, phase in (("run-scoring", "teacher"), ("run-training", "student")):
        path = cut(finished, folder / f"{finished.name}-{phase}", events, phase)
        last = json.loads((path / "events.jsonl").read_text().splitlines()[-1])["time"]
        with Run(path, {}).lock():
            await picture(path, out, name, clock=lambda last=last: last + 0.5)  # type: ignore[misc]
            if phase == "student":
                await picture(path, out, "runs", clock=lambda last=last: last + 0.5)  # type: ignore[misc]
        shutil.rmtree(path)
    await picture(finished, out, "result", clock=lambda: events[-1]["time"])


def cut(finished: Path, path: Path, events: list[dict[str, Any]], phase: str) -> Path:
    """A run as it was two thirds through a phase."""
    within = [
        number for number, event in enumerate(events) if event.get("phase") == phase and event["kind"] == "progress"
    ]
    end = within[len(within) * 2 // 3] + 1
    path.mkdir()
    shutil.copy(finished / "run.json", path)
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events[:end]))
    return path


async def picture(path: Path, out: Path, name: str, clock: Callable[[], float]) -> None:
    """One screen of a run."""
    from tinydistill_tui.app import TinyDistillApp
    from tinydistill_tui.work import busy

    busy.load = lambda: 0.0  # what this machine does now says nothing of when the run was made
    app = TinyDistillApp(attach=path, options={"no_animation": True}, clock=clock)
    async with app.run_test(size=(120, 36)) as pilot:
        await settled(pilot)
        if name == "runs":
            app.switch_mode("runs")
            await settled(pilot)
        save(app, out, name)


async def settled(pilot: Any) -> None:
    """Wait until the screen has not changed for a while."""
    before, same = "", 0
    for _ in range(400):
        await pilot.pause(0.1)
        now = pilot.app.export_screenshot()
        same = same + 1 if now == before else 0
        before = now
        if same >= 15:
            return
    raise TimeoutError("the screen does not come to rest")


async def shows(pilot: Any, word: str) -> None:
    """Wait for a word: a process that makes what is shown takes seconds, in which nothing changes."""
    for _ in range(1200):
        await pilot.pause(0.1)
        if f">{word}" in (seen := pilot.app.export_screenshot()) or f"&#160;{word}&#160;" in seen:
            return
    raise TimeoutError(f"{word} does not come")


def save(app: Any, out: Path, name: str) -> None:
    """Write what is seen."""
    drawn = app.export_screenshot(title=f"TinyDistill: {TITLES[name]}")
    assert "font-family: Fira Code, monospace" in drawn, "Textual names another font now"
    drawn = drawn.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")
    (out / f"{name}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
