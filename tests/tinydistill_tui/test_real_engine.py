"""A real run of the engine, seen from the screen: started, paused, stopped, resumed and finished by keys."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from engine.channel.events import read_events
from engine.format import format_bytes
from engine.model_files.demo import DEMO_TEACHER
from engine.planner import measure
from engine.run import launch
from engine.settings.config import RunConfig
from tests.end_to_end.program import write_texts
from tests.tiny import tiny_model
from tests.tinydistill_tui.screen import lines_of, text_of, until
from tests.tinydistill_tui.wizard import to_the_plan, wizard
from tinydistill_tui.app import TinyDistillApp
from tinydistill_tui.dialogs.confirm import ConfirmScreen
from tinydistill_tui.navigation import StartRun
from tinydistill_tui.screens.finish import FinishScreen
from tinydistill_tui.screens.run import RunScreen
from tinydistill_tui.view import result
from tinydistill_tui.work import runs

pytestmark = pytest.mark.slow


def kinds(path):
    return [event["kind"] for event in read_events(path / "events.jsonl")]


async def test_a_real_run_is_started_paused_stopped_resumed_and_finished_by_keys(runs_folder, tmp_path):
    config = RunConfig.parse(
        {
            "teacher": str(tiny_model("llama")),
            "student": str(tiny_model("llama", num_layers=2, seed=1)),
            "data": str(write_texts(tmp_path / "data")),
            "sequence_length": 64,
            "samples": 40,
            "epochs": 60,
            "student_batch": 4,
            "precision": "fp32",
            "threads": 1,
            "output_dir": str(runs_folder / "real"),
        }
    )
    path = launch.new_run(config).path
    app = TinyDistillApp(attach=path, options={"no_animation": True})
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, RunScreen), "the run is shown")
        await app.navigate(StartRun(path))
        await until(pilot, lambda: "starting" in lines_of(app)[0] or "preparing" in lines_of(app)[0], "it was sent off")
        await until(pilot, lambda: "● training" in lines_of(app)[0] and app.screen.view.step, "it trains", seconds=180)
        await pilot.press("space")
        await until(pilot, lambda: "■ paused" in lines_of(app)[0], "it paused")
        await pilot.press("space")
        await until(pilot, lambda: "● training" in lines_of(app)[0], "it continues")
        await pilot.press("S")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "it asks")
        await pilot.press("s")
        await until(pilot, lambda: "■ stopped" in lines_of(app)[0], "it stopped")
        assert "checkpoint" in kinds(path)
        step = app.screen.view.checkpoint_step
        assert step
        await until(pilot, lambda: not runs.is_live(path), "its process is gone")
        await pilot.press("R")
        await until(pilot, lambda: isinstance(app.screen, FinishScreen), "it continues to the end", seconds=240)
        report = json.loads((path / "report.json").read_text())
        screen = text_of(app)
        costs = "\n".join(words for _, words in result.costs(report))
        for phase in ("teacher", "student"):
            assert f"peak {format_bytes(report['phases'][phase]['peak_bytes'])}" in costs
        assert f"{report['student_after']['holdout_loss']:.3f}" in screen
        await pilot.press("y")
        copied = app.clipboard
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    tried = subprocess.run(
        ["sh", "-c", copied], input="The river\n", capture_output=True, text=True, env=environment, timeout=200
    )
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.strip(), "the student answers the line it is given"
    steps = [event["step"] for event in read_events(path / "events.jsonl") if event["kind"] == "metric"]
    assert max(steps[: steps.index(step) + 1]) == step
    assert kinds(path).count("run_finished") == 2


async def test_a_killed_supervisor_is_lost_and_resumed(runs_folder, tmp_path):
    config = RunConfig.parse(
        {
            "teacher": str(tiny_model("llama")),
            "student": str(tiny_model("llama", num_layers=2, seed=1)),
            "data": str(write_texts(tmp_path / "data")),
            "sequence_length": 64,
            "samples": 20,
            "threads": 1,
            "output_dir": str(runs_folder / "real"),
        }
    )
    path = launch.new_run(config).path
    app = TinyDistillApp(attach=path, options={"no_animation": True})
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, RunScreen), "the run is shown")
        await app.navigate(StartRun(path))
        await until(pilot, lambda: app.screen.view.phase is not None and app.screen.view.pid, "it began")
        os.kill(app.screen.view.pid, signal.SIGKILL)
        await until(pilot, lambda: "? lost" in lines_of(app)[0], "it is lost")
        await pilot.press("R")
        await until(pilot, lambda: isinstance(app.screen, FinishScreen), "it continues to the end", seconds=240)
        assert "done" in lines_of(app)[0]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_the_run_outlives_the_terminal_it_was_started_from(runs_folder, tmp_path):
    config = RunConfig.parse(
        {
            "teacher": str(tiny_model("llama")),
            "student": str(tiny_model("llama", num_layers=2, seed=1)),
            "data": str(write_texts(tmp_path / "data")),
            "sequence_length": 64,
            "samples": 20,
            "threads": 1,
            "output_dir": str(runs_folder / "real"),
        }
    )
    path = launch.new_run(config).path
    tmux = ["tmux", "-L", f"tinydistill-{os.getpid()}"]
    screen = shlex.join([sys.executable, "-m", "tinydistill_tui", "--attach", str(path)])
    subprocess.run(
        [*tmux, "-f", "/dev/null", "new-session", "-d", "-s", "s", "-x", "80", "-y", "24", screen], check=True
    )

    def shown():
        return subprocess.run([*tmux, "capture-pane", "-p", "-t", "s"], capture_output=True, text=True).stdout

    wait_for(lambda: "R Resume" in shown(), 30, "the screen is there")  # made, and never begun: it can be resumed
    subprocess.run([*tmux, "send-keys", "-t", "s", "R"], check=True)
    wait_for(lambda: "phase_started" in kinds(path), 60, "the run began")
    subprocess.run([*tmux, "kill-server"], check=True)
    assert runs.is_live(path)
    wait_for(lambda: "run_finished" in kinds(path), 240, "the run continues to its end")
    assert list(read_events(path / "events.jsonl"))[-1]["status"] == "done"


def wait_for(condition, seconds, what):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.2)


async def test_bytes_on_the_screen_are_those_that_the_copied_command_prints(notes, monkeypatch):
    asked = {"teacher": str(DEMO_TEACHER), "data": str(notes), "device": "cpu", "sequence_length": 64}
    measure.machine_rates(measure=True, threads=1)  # else the plan would first be made of cautious figures
    async with wizard({**asked, "memory_budget": "2GB", "ram_budget": "2GB", "threads": 1}) as (app, pilot):
        copied = []
        monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
        screen = await to_the_plan(app, pilot)
        await pilot.press("y")
        shown = text_of(app)
    command = shlex.split(copied[0])[1:]
    out = subprocess.run(
        [sys.executable, "-m", "engine.cli.distill", *command, "--dry_run", "--json"], capture_output=True, text=True
    ).stdout
    predicted = next(event for event in map(json.loads, out.splitlines()) if event["kind"] == "plan")["predicted"]
    planned = screen.draft.plan
    assert {phase: predicted[phase]["peak_bytes"] for phase in ("teacher", "student")} == {
        phase: planned.predicted[phase].peak_bytes for phase in ("teacher", "student")
    }
    assert predicted["disk_bytes"] == planned.disk_bytes
    for phase, word in (("teacher", "score"), ("student", "train")):
        line = next(line for line in shown.splitlines() if f"RAM {word}" in line)
        assert f" {format_bytes(predicted[phase]['peak_bytes'])} of " in line
    assert f"Disk {format_bytes(predicted['disk_bytes'])} of" in shown
