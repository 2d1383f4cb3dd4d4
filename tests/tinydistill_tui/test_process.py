"""Properties that only a real process shows: imports, memory, its end by a signal, exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tinydistill_tui.fixtures import append, held, make_run
from tests.tinydistill_tui.terminal import terminal

MANY = 200_000


def memory_of(pid, field):
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def grow(path, count):
    """Append many events, as a long run would have them: half memory, a third progress, the rest metrics and words."""
    lines = []
    for n in range(count):
        moment = time.time() - (count - n) / 50
        match n % 6:
            case 0 | 1 | 2:
                event = {
                    "kind": "memory",
                    "phase": "student",
                    "bytes": 2_600_000_000 + n % 1000,
                    "peak_bytes": 2_700_000_000,
                    "budget_bytes": 3_000_000_000,
                }
            case 3 | 4:
                event = {
                    "kind": "progress",
                    "phase": "student",
                    "done": n,
                    "total": count,
                    "unit": "steps",
                    "rate": 1.0,
                    "eta_seconds": count - n,
                }
            case _:
                event = {
                    "kind": "metric",
                    "phase": "student",
                    "step": n,
                    "total_steps": count,
                    "loss": 3.0 - n / count,
                    "learning_rate": 1e-5,
                    "grad_norm": 1.0,
                }
        lines.append(json.dumps({"time": moment, **event}))
    with (path / "events.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n")


def test_the_screens_never_import_what_is_heavy():
    code = (
        "import sys, pkgutil, importlib, tinydistill_tui\n"
        "for module in pkgutil.walk_packages(tinydistill_tui.__path__, 'tinydistill_tui.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "heavy = ('torch', 'transformers', 'tokenizers', 'h5py', 'numpy', 'bitsandbytes', 'pyarrow')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_is_heavy_is_not_imported_while_it_runs_either(runs_folder):
    path = make_run(runs_folder, scene="lost")
    with terminal(["--attach", str(path)]) as term:
        term.wait_for("lost")
        with open(f"/proc/{term.process.pid}/maps") as maps:
            mapped = maps.read()
        # Not libcuda: where there is a GPU, the driver's library of figures brings it.
        assert not [name for name in ("libtorch", "numpy", "h5py") if name in mapped]
        term.type("q")
        assert term.wait() == 0


@pytest.mark.slow
def test_long_run_opens_at_once_answers_while_it_reads_and_takes_little_memory(runs_folder):
    path = make_run(runs_folder, now=time.time())
    grow(path, MANY)
    with held(path), terminal(["--attach", str(path)]) as term:
        term.wait_for("reading")
        term.type("?")
        term.wait_for("A run: its phases")
        term.type("\x1b")
        term.wait_for("gap 67% closed")
        append(path, [{"time": time.time(), "kind": "log", "level": "info", "message": "the newest word"}])
        term.wait_for("the newest word")
        assert memory_of(term.process.pid, "VmHWM") < 120 * 2**20


def test_fifty_events_a_second_leave_memory_flat(runs_folder):
    path = make_run(runs_folder, now=time.time())
    with held(path), terminal(["--attach", str(path)]) as term:
        term.wait_for("gap 67% closed")
        term.read(1.0)
        before = memory_of(term.process.pid, "VmRSS")
        for _ in range(20):
            grow(path, 100)
            term.read(0.1)
        assert memory_of(term.process.pid, "VmRSS") - before < 10 * 2**20
        term.type("q")
        term.wait_for("The run is still running")


def test_sigterm_leaves_the_terminal_as_it_was(runs_folder):
    path = make_run(runs_folder, now=time.time())
    with held(path), terminal(["--attach", str(path)]) as term:
        term.wait_for("gap 67% closed")
        term.process.send_signal(signal.SIGTERM)
        assert term.wait() == 0
        end = bytes(term.written)
    for switched_on, switched_off in (
        (b"\x1b[?1049h", b"\x1b[?1049l"),
        (b"\x1b[?1003h", b"\x1b[?1003l"),
        (b"\x1b[?25l", b"\x1b[?25h"),
    ):
        assert end.rindex(switched_off) > end.rindex(switched_on)


def test_no_mouse_leaves_the_mouse_to_the_terminal(runs_folder):
    path = make_run(runs_folder, scene="lost")
    with terminal(["--attach", str(path), "--no-mouse"]) as term:
        term.wait_for("lost")
        assert b"\x1b[?1003h" not in term.written
        assert b"\x1b[?1000h" not in term.written


def test_256_colours_are_enough(runs_folder):
    path = make_run(runs_folder, scene="lost")
    with terminal(["--attach", str(path)], TEXTUAL_COLOR_SYSTEM="256") as term:
        term.wait_for("lost")
        assert b";2;" not in bytes(term.written).replace(b"2026;2", b"")


def test_a_defect_is_one_paragraph_and_a_file_and_no_traceback(runs_folder, tmp_path):
    path = make_run(runs_folder, scene="lost")
    (tmp_path / "sitecustomize.py").write_text(
        "import tinydistill_tui.view.state as state\n"
        "def broken(*a, **k): raise RuntimeError('a defect made for the test')\n"
        "state.run_state = broken\n"
    )
    with terminal(["--attach", str(path)], PYTHONPATH=f"{tmp_path}{os.pathsep}{os.getcwd()}") as term:
        assert term.wait() == 4
        text = term.text()
    assert "The screen met a defect and closed." in text
    assert f"tinydistill-tui --attach {path}" in text.replace("\r\n", "")
    assert "Traceback" not in text
    assert "a defect made for the test" in (path / "ui-crash.log").read_text()


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"ACCESSIBLE": "1"}])
def test_where_a_screen_cannot_be_drawn_there_are_lines_without_codes(runs_folder, environment):
    path = make_run(runs_folder, scene="done")
    with terminal(["--attach", str(path)], **environment) as term:
        term.wait(120)
        text = bytes(term.written)
    assert b"\x1b" not in text
    assert b"since " in text


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"ACCESSIBLE": "1"}])
def test_where_a_screen_cannot_be_drawn_the_wizard_asks_in_lines(environment):
    with terminal([], **environment) as term:
        term.wait_for("teacher: ")
        term.type("\x04")  # the end of the input
        assert term.wait() != 0
        text = term.text()
    assert text.index("No screen, since") < text.index("Leave a line empty")
    assert "Nothing was started." in text
    assert b"\x1b" not in bytes(term.written)


def test_output_into_a_file_has_no_codes_and_says_why(runs_folder):
    path = make_run(runs_folder, scene="done")
    result = subprocess.run(
        [sys.executable, "-m", "tinydistill_tui", "--attach", str(path)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert b"\x1b" not in result.stdout + result.stderr
    assert b"since the output is not a terminal" in result.stderr
    assert b"Traceback" not in result.stderr


def test_locale_without_the_signs_gets_ascii_by_itself(runs_folder):
    path = make_run(runs_folder, scene="stopped")
    locale = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with terminal(["--attach", str(path)], **locale) as term:
        term.wait_for("# stopped")
        term.type("q")
        assert term.wait() == 0
        assert bytes(term.written).isascii()
        assert "\\u2" not in term.text()


@pytest.mark.parametrize("theme", ["", "ansi-dark"])
def test_no_color_sends_greys_alone_in_any_theme(runs_folder, theme):
    more = {"TEXTUAL_THEME": theme} if theme else {}
    path = make_run(runs_folder, scene="stopped")
    with terminal(["--attach", str(path)], COLORTERM="truecolor", NO_COLOR="1", **more) as term:
        term.wait_for("■ stopped")
        term.type("q")
        assert term.wait() == 0
    colours = set(re.findall(rb"[34]8;2;(\d+;\d+;\d+)", bytes(term.written)))
    assert colours, "else the chosen row looks like all others"
    assert all(len(set(colour.split(b";"))) == 1 for colour in colours), colours


def test_json_is_all_that_a_pipe_gets(runs_folder):
    path = make_run(runs_folder, scene="done")
    result = subprocess.run(
        [sys.executable, "-m", "tinydistill_tui", "--attach", str(path), "--json"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert result.stderr == b""
    kinds = [json.loads(line)["kind"] for line in result.stdout.splitlines()]
    assert kinds[-1] == "run_finished"


def test_attaching_to_what_is_no_run_is_a_sentence(tmp_path):
    with terminal(["--attach", str(tmp_path)]) as term:
        assert term.wait() == 2
        assert "There is no run in" in term.text()
        assert b"\x1b[?1049h" not in term.written


@pytest.fixture
def signals_are_heard():
    """Children ignore what their parent does: SIGHUP under ``nohup``, SIGINT and SIGQUIT behind a shell's ``&``."""
    numbers = (signal.SIGHUP, signal.SIGQUIT)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1])
def test_signal_ends_the_screen_and_leaves_the_terminal_as_it_was(signals_are_heard, runs_folder, number):
    path = make_run(runs_folder, now=time.time())
    with held(path), terminal(["--attach", str(path)]) as term:
        term.wait_for("gap 67% closed")
        term.process.send_signal(number)
        assert term.wait() == 0
        assert b"\x1b[?1049l" in term.written, "the shell's own screen"
        assert b"\x1b[?1000l" in term.written, "no mouse codes"


def test_second_signal_ends_a_program_that_is_stuck(signals_are_heard, tmp_path):
    """Its event loop waits, as it does where a terminal takes no more."""
    is_stuck = tmp_path / "stuck"
    stuck = f"""
import pathlib, sys, time
from tinydistill_tui import app, cli
async def stop(self):
    pathlib.Path({str(is_stuck)!r}).touch()
    time.sleep(600)
app.TinyDistillApp._import_screens = stop
sys.exit(cli.main(sys.argv[1:]))
"""
    with terminal([], code=stuck) as term:
        term.wait_for("Teach a small language model")
        until = time.monotonic() + 60
        while not is_stuck.exists() and time.monotonic() < until:
            term.read(0.1)  # a signal before that ends it in order
        while term.process.poll() is None and time.monotonic() < until:
            term.process.send_signal(signal.SIGTERM)
            term.read(0.2)
        assert term.process.poll() == -signal.SIGTERM


def test_hangup_of_a_closed_terminal_ends_the_screen(signals_are_heard, runs_folder):
    path = make_run(runs_folder, now=time.time())
    with held(path), terminal(["--attach", str(path)]) as term:
        term.wait_for("gap 67% closed")
        os.close(term.descriptor)
        term.process.send_signal(signal.SIGHUP)
        try:
            assert term.process.wait(timeout=120) == -signal.SIGHUP
        finally:
            term.descriptor = os.open(os.devnull, os.O_RDWR)  # closed once more at the end


def test_hangup_under_nohup_changes_nothing(runs_folder):
    path = make_run(runs_folder, now=time.time())
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with held(path), terminal(["--attach", str(path)]) as term:
            term.wait_for("gap 67% closed")
            term.process.send_signal(signal.SIGHUP)
            term.type("z")  # and it still hears keys
            term.written.clear()
            term.type("?")
            term.wait_for("Esc")
            assert term.process.poll() is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="the state of a process is read from /proc")
def test_ctrl_z_suspends_and_the_screen_comes_back(runs_folder):
    path = make_run(runs_folder, scene="stopped")
    with terminal(["--attach", str(path)]) as term:
        term.wait_for("■ stopped")
        term.type("\x1a")
        until = time.monotonic() + 60
        while Path(f"/proc/{term.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            term.read(0.1)
            assert time.monotonic() < until, "it is not suspended"
        assert b"\x1b[?1049l" in term.written  # the shell's own screen
        term.written.clear()
        os.kill(term.process.pid, signal.SIGCONT)
        term.wait_for("■ stopped")
        term.type("q")
        assert term.wait() == 0
