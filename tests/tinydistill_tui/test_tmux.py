"""The terminal dies, the screen is killed, the supervisor is killed: what a user sees of it."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid

import pytest

from engine.channel.events import read_events
from tests.tinydistill_tui.fixtures import make_run
from tinydistill_tui.work import runs

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


PROMPT = "ready: "


class Tmux:
    """A tmux server of the test's own, with one session."""

    def __init__(self, tmp_path, environment):
        self.socket = f"tinydistill-{uuid.uuid4().hex[:8]}"
        self.environment = {**os.environ, **environment, "TERM": "xterm-256color"}
        self.environment.pop("TMUX", None)
        self.call("-f", "/dev/null", "new-session", "-d", "-s", "s", "-x", "80", "-y", "24", "sh")
        self.call("set-option", "-g", "remain-on-exit", "on")

    def call(self, *words):
        result = subprocess.run(
            ["tmux", "-L", self.socket, *words], capture_output=True, text=True, env=self.environment
        )
        return result.stdout

    def type(self, *keys):
        self.call("send-keys", "-t", "s", *keys)

    def text(self):
        return self.call("capture-pane", "-p", "-t", "s")

    def wait_for(self, words, seconds=120.0):
        until = time.monotonic() + seconds
        while words not in self.text():
            assert time.monotonic() < until, f"{words!r} is not on the screen:\n{self.text()}"
            time.sleep(0.1)

    def start(self, *words):
        self.type(f"PS1='{PROMPT}'; clear", "Enter")
        command = shlex.join([sys.executable, "-m", "tinydistill_tui", *map(str, words)])
        self.type(command, "Enter")

    def kill(self):
        self.call("kill-server")


@pytest.fixture
def tmux(tmp_path, runs_folder):
    terminal = Tmux(tmp_path, {"TZ": "UTC"})
    yield terminal
    terminal.kill()


@contextlib.contextmanager
def engine(path):
    """A fake engine on a run, detached."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tinydistill_tui.fake_engine", str(path)], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not runs.is_live(path):
            assert time.monotonic() < until
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def pid_of_screen(path):
    """The process that shows the run."""
    out = subprocess.run(["pgrep", "-f", f"tinydistill_tui --attach {path}"], capture_output=True, text=True).stdout
    return int(out.split()[-1])


def count(path):
    return sum(1 for _ in read_events(path / "events.jsonl"))


def begun(runs_folder):
    path = make_run(runs_folder, "notes", "starting", now=time.time())
    (path / "events.jsonl").write_text("")
    return path


def test_leaving_is_the_chosen_answer_and_the_run_continues(tmux, runs_folder):
    path = begun(runs_folder)
    with engine(path):
        tmux.start("--attach", path)
        tmux.wait_for("attached, live")
        tmux.type("q")
        tmux.wait_for("The run is still running")
        tmux.type("Enter")
        tmux.wait_for(PROMPT.strip())
        before = count(path)
        time.sleep(0.5)
        assert count(path) > before


def test_killed_screen_comes_back_and_shows_the_same(tmux, runs_folder):
    path = begun(runs_folder)
    with engine(path) as process:
        tmux.start("--attach", path)
        tmux.wait_for("attached, live")
        os.kill(pid_of_screen(path), signal.SIGKILL)
        before = count(path)
        time.sleep(0.5)
        assert count(path) > before
        tmux.call("respawn-pane", "-k", "-t", "s", "sh")
        tmux.start("--attach", path)
        tmux.wait_for("attached, live")
        process.send_signal(signal.SIGSTOP)  # nothing is added while the numbers are compared
        total = sum(1 for event in read_events(path / "events.jsonl") if event["kind"] not in ("memory", "progress"))
        steps = max(event["step"] for event in read_events(path / "events.jsonl") if event["kind"] == "metric")
        tmux.wait_for(f"of {total:,} lines")
        tmux.wait_for(f"{steps:,}/100 k steps")
        process.send_signal(signal.SIGCONT)


def test_sigterm_gives_the_terminal_back(tmux, runs_folder):
    path = begun(runs_folder)
    with engine(path):
        tmux.start("--attach", path)
        tmux.wait_for("attached, live")
        assert tmux.call("display", "-p", "-t", "s", "#{alternate_on} #{mouse_any_flag}").split() == ["1", "1"]
        os.kill(pid_of_screen(path), signal.SIGTERM)
        tmux.wait_for(PROMPT.strip())
        assert tmux.call("display", "-p", "-t", "s", "#{alternate_on} #{mouse_any_flag}").split() == ["0", "0"]
        tmux.type("echo still $((40+2))", "Enter")
        tmux.wait_for("still 42")


def test_killed_supervisor_is_seen_as_lost_and_can_be_resumed(tmux, runs_folder):
    path = begun(runs_folder)
    with engine(path) as process:
        tmux.start("--attach", path)
        tmux.wait_for("attached, live")
        process.kill()
        process.wait()
        tmux.wait_for("? lost")
        tmux.wait_for("R resumes it")
        tmux.wait_for("R Resume")
        assert "Traceback" not in tmux.text()


def test_two_screens_show_the_same_and_hear_each_other(tmux, runs_folder):
    path = begun(runs_folder)
    with engine(path):
        tmux.start("--attach", path)
        tmux.wait_for("attached, live")
        tmux.call(
            "new-window", "-t", "s:1", shlex.join([sys.executable, "-m", "tinydistill_tui", "--attach", str(path)])
        )
        tmux.wait_for("attached, live")
        tmux.type("Space")
        tmux.wait_for("■ paused")
        tmux.call("select-window", "-t", "s:0")
        tmux.wait_for("■ paused")
        tmux.type("Space")
        tmux.wait_for("● training")
        tmux.call("select-window", "-t", "s:1")
        tmux.wait_for("● training")
    writers = {json.loads(line)["by"] for line in (path / "control").read_text().splitlines()}
    assert len(writers) == 2


def test_stop_ends_with_a_checkpoint(tmux, runs_folder):
    path = begun(runs_folder)
    with engine(path):
        tmux.start("--attach", path)
        tmux.wait_for("attached, live")
        tmux.type("S")
        tmux.wait_for("Stop notes?")
        tmux.type("s")
        tmux.wait_for("■ stopped")
        kinds = [event["kind"] for event in read_events(path / "events.jsonl")]
        assert kinds[-2:] == ["checkpoint", "run_finished"]
        tmux.type("q")
        tmux.wait_for(PROMPT.strip())


def test_windows_of_any_size(tmux, runs_folder):
    path = begun(runs_folder)
    with engine(path):
        tmux.start("--attach", path)
        tmux.wait_for("attached, live")
        for width, height in ((120, 40), (60, 16), (20, 5), (80, 24)):
            tmux.call("resize-window", "-t", "s", "-x", str(width), "-y", str(height))
            tmux.wait_for("training")
        tmux.call("resize-window", "-t", "s", "-x", "20", "-y", "5")
        tmux.wait_for("training")
        tmux.type("q")
        time.sleep(0.5)
        tmux.type("Enter")
        tmux.wait_for(PROMPT.strip())
        assert "Traceback" not in tmux.text()


@pytest.mark.parametrize("programs_may_copy", ["on", "external"])
def test_copied_text_is_in_tmux_whether_programs_may_copy_or_not(tmux, runs_folder, programs_may_copy):
    path = make_run(runs_folder, now=time.time())
    tmux.call("set-option", "-s", "set-clipboard", programs_may_copy)
    tmux.start("--attach", path)
    tmux.wait_for("lost")
    tmux.type("w", "y")
    tmux.wait_for("Copied the shown log")
    assert "The disk is getting full: 3.1 GiB free." in tmux.call("show-buffer")
