from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import Counter

import pytest

from engine.disk import fault
from engine.disk.fault import commit_point

PASS_THREE_TIMES = (
    "from engine.disk.fault import commit_point\nfor n in range(3): print(n, flush=True); commit_point('here')"
)


@pytest.fixture(autouse=True)
def _nothing_passed_yet(monkeypatch):
    monkeypatch.setattr(fault, "_passed", Counter())


@pytest.mark.parametrize(("at", "printed", "code"), [("here:2", "0\n1\n", -9), ("there:1", "0\n1\n2\n", 0)])
def test_a_process_is_killed_where_the_variable_says(at, printed, code):
    environment = {**os.environ, "TINYDISTILL_CRASH_AT": at}
    command = [sys.executable, "-c", PASS_THREE_TIMES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (printed, code)


def test_the_disk_is_full_once_where_the_variable_says(monkeypatch):
    monkeypatch.setenv("TINYDISTILL_ENOSPC_AT", "here:2")
    commit_point("here")
    commit_point("there")
    with pytest.raises(OSError, match="No space left") as caught:
        commit_point("here")
    assert caught.value.errno == errno.ENOSPC
    commit_point("here")


def test_nothing_happens_unless_a_variable_is_set():
    for _ in range(3):
        commit_point("here")
    assert not fault._passed
