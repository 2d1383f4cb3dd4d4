"""The terminal is lent to another program and always taken back."""

import contextlib
import os
import signal

import pytest
from textual.app import SuspendNotSupported

from tests.tinydistill_tui.terminal import terminal
from tinydistill_tui.terminal.sharing import lend


class Lender:
    """Suspends as Textual does: it takes the terminal back only where nothing was raised."""

    is_away = False

    @contextlib.contextmanager
    def suspend(self):
        self.is_away = True
        yield
        self.is_away = False


def missing_program():
    raise FileNotFoundError(2, "No such file or directory")


def interrupted():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("act", "problem"),
    [(lambda: None, ""), (missing_program, "No such file or directory"), (interrupted, "")],
    ids=["well", "missing", "ctrl-c"],
)
def test_terminal_comes_back_whatever_happens(act, problem):
    lender = Lender()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as an event loop has its own
    try:
        assert lend(lender, act) == problem
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert not lender.is_away


def test_terminal_that_cannot_be_shared_says_so():
    class Headless:
        def suspend(self):
            raise SuspendNotSupported

    assert lend(Headless(), lambda: None) == "this terminal cannot be shared"


PAGER = """
import os, sys
from pathlib import Path
from tinydistill_tui.app import TinyDistillApp

def read(app):
    app.show_in_pager(Path(os.environ["SHOWN"]))
    app.exit(7)

TinyDistillApp._open = lambda app: app.set_timer(0.1, lambda: read(app))
sys.exit(TinyDistillApp().run())
"""


def test_ctrl_c_in_the_pager_does_not_end_the_program(tmp_path):
    text = tmp_path / "report.md"
    text.write_text("the report\n")
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho the pager is here\nsleep 60\n")
    pager.chmod(0o755)
    with terminal([], code=PAGER, PAGER=str(pager), SHOWN=str(text), HOME=str(tmp_path)) as shown:
        shown.wait_for("the pager is here")
        os.killpg(shown.process.pid, signal.SIGINT)  # what the terminal does at Ctrl+C
        assert shown.wait() == 7
