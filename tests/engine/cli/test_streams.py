"""Output that lacks our signs, and readers that go."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from engine.cli import distill
from engine.cli.console import Console
from engine.run.folder import Run

PROGRAM = """
import sys
from engine.cli.distill import guarded
def body(words):
    for _ in range(int(words[0])):
        print("12 ± 3 · a → b … \\u4e2d")
    return 0
sys.exit(guarded(sys.argv[1:], body))
"""


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", "12 +/- 3 - a -> b ... ?"), ("latin-1", "12 ± 3 · a -> b ... ?"), ("utf-8", "12 ± 3 · a → b … 中")],
)
def test_a_sign_that_the_output_lacks_becomes_a_plain_one(encoding, expected):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "1"], env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True
    )
    assert done.stdout.decode(encoding).strip() == expected
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_early_is_no_failure(lines):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(lines)], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_may_be_read_in_part():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "engine", "--help"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


CLOSED = """
import os, sys
for number in map(int, sys.argv[2].split()):
    os.close(number)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[3:]])
"""


@pytest.mark.parametrize("closed", ["0", "1", "0 1 2"])
@pytest.mark.parametrize("module", ["engine.cli.chat", "engine.cli.distill", "tinydistill_tui"])
def test_closed_standard_streams_are_no_failure(closed, module, tmp_path):
    words = [] if module == "engine.cli.chat" else ["--resume", "--output_dir"]
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, "-", closed, module, *words, str(tmp_path / "none")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "unexpected" not in done.stderr
    assert "2" in closed or "none" in done.stderr


@pytest.mark.parametrize(("columns", "width"), [("0", 80), ("1", 80), ("-3", 80), ("nonsense", 80), ("60", 60)])
def test_a_width_that_nothing_fits_into_is_passed_over(columns, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    console = Console(file=io.StringIO())
    assert console.width == width
    console.print("the result")
    assert console.file.getvalue() == "the result\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE])
@pytest.mark.parametrize("when", ["made", "shown", "closed", "ended"])
def test_a_run_outlives_the_output_that_shows_it(number, when, tmp_path, monkeypatch, capsys):
    """A full disk under a log, or the terminal that nohup was started in and that is gone, ended the run."""
    silenced, calls = [], []
    monkeypatch.setattr(distill.streams, "silence", lambda: silenced.append(True))

    def write(now):
        calls.append(now)
        if now == when:
            raise OSError(number, os.strerror(number))

    def make():
        write("made")
        return SimpleNamespace(show=lambda event: write("shown"), close=lambda: write("closed"))

    view = distill._Lasting(make, Run(tmp_path, {}))
    view.show({})
    view.show({})
    view.close()
    view.then(lambda: write("ended"))
    steps = ["made", "shown", "shown", "closed", "ended"]
    assert calls == steps[: 1 + steps.index(when)], "nothing is written any more"
    assert silenced == [True]
    assert ("The run continues" in capsys.readouterr().err) == (number != errno.EPIPE)
