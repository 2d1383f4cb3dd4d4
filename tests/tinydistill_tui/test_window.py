"""The window's size is followed, whatever became of the notice."""

import contextlib
import fcntl
import os
import re
import signal
import struct
import termios
import time

import pytest
from textual.events import Resize
from textual.geometry import Size

from tests.tinydistill_tui.fixtures import make_run
from tests.tinydistill_tui.screen import until, watching
from tests.tinydistill_tui.terminal import terminal
from tinydistill_tui.terminal import window


def resize(term, columns, rows):
    """Make the window another size; as ever, the program is told by a signal."""
    term.written.clear()
    fcntl.ioctl(term.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def wait_for_a_frame(term, columns):
    """Wait until the rule below the title is as wide as the window."""
    rule = re.compile(f"(?<!─)─{{{columns}}}(?!─)")
    until_when = time.monotonic() + 120
    while not rule.search(term.text()):
        assert time.monotonic() < until_when, term.text()[-3000:]
        term.read(0.1)


@contextlib.contextmanager
def blocked(number):
    """A signal that a process started within never hears."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


def test_a_lost_signal_costs_a_second_and_not_the_picture(runs_folder):
    path = make_run(runs_folder, scene="lost")
    with blocked(signal.SIGWINCH), terminal(["--attach", str(path)]) as term:
        term.wait_for("R Resume")
        for columns, rows in ((60, 16), (100, 30)):
            resize(term, columns, rows)
            wait_for_a_frame(term, columns)


def test_notice_of_the_same_size_draws_everything_again(runs_folder):
    path = make_run(runs_folder, scene="lost")
    with terminal(["--attach", str(path)]) as term:
        term.wait_for("R Resume")
        term.read(0.5)
        term.written.clear()
        term.process.send_signal(signal.SIGWINCH)  # there and back while the program was busy: half the picture is gone
        wait_for_a_frame(term, 80)


def test_exported_columns_and_lines_do_not_hold_the_window(runs_folder):
    path = make_run(runs_folder, scene="lost")
    with terminal(["--attach", str(path)], COLUMNS="50", LINES="50") as term:
        wait_for_a_frame(term, 80)
        resize(term, 60, 16)
        wait_for_a_frame(term, 60)


async def test_size_that_textual_has_put_aside_for_ever_reaches_the_screen(runs_folder, monkeypatch):
    path = make_run(runs_folder, scene="lost")
    async with watching(path) as (app, pilot):
        app._resize_timer = app.set_timer(10_000, lambda: None)  # as if it were one that never came
        app.post_message(Resize(Size(100, 30), Size(100, 30)))
        await until(pilot, lambda: app.size == (100, 30), "the app knows")
        await pilot.pause(0.05)
        assert app.screen.outer_size == (80, 24)
        monkeypatch.setattr(window, "window_size", lambda: Size(100, 30))
        window.follow(app)
        await until(pilot, lambda: app.screen.outer_size == (100, 30), "the screen knows")


@pytest.mark.parametrize("descriptor", [-1, None])
def test_without_a_terminal_there_is_no_size(monkeypatch, descriptor):
    with open(os.devnull) as nothing:
        stream = None if descriptor is None else nothing
        monkeypatch.setattr("sys.__stdout__", stream)
        monkeypatch.setattr("sys.__stdin__", stream)
        assert window.window_size() is None


async def test_notice_of_a_size_that_the_window_no_longer_has_changes_nothing(runs_folder):
    window.take_only_the_newest_size()
    path = make_run(runs_folder, scene="lost")
    async with watching(path, size=(80, 24)) as (app, pilot):
        old = Size(120, 40)
        app.screen.post_message(Resize(old, old))
        await pilot.pause(0.1)
        assert app.screen.outer_size == Size(80, 24)
        assert not app.screen.has_class("-wide")
        await pilot.resize_terminal(120, 40)
        await until(pilot, lambda: app.screen.outer_size == old, "a new size is taken")
