"""How many matrix product kernels a phase's process keeps, however the process was made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.machine.kernels import kernels_environment
from engine.run.phase_environment import environment_for
from tests.jobs import train_job

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"

# A copy of a preloaded process has the environment that was made for all phases. It reads the limit with its first
# product, which libraries do by getenv(3).
PROGRAM = """
import ctypes, sys
from pathlib import Path
from engine.channel.events import EventWriter
from engine.phases import process as phase
from engine.jobs import Job
def body(run, job, channel):
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    print(getenv(b"ONEDNN_PRIMITIVE_CACHE_CAPACITY").decode())
class Opened:
    def event_writer(self, phase):
        return EventWriter(Path(sys.argv[2], "events.jsonl"), phase=phase)
    def job(self, name):
        return Job.model_construct(kind=name)
phase._body = lambda job: body
phase.Run.open = staticmethod(lambda folder: Opened())
raise SystemExit(phase.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("phase", ["prepare", "teacher", "student"])
def test_each_phase_has_its_own_limit(phase: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, phase, str(tmp_path), str(os.getpid())]
    environment = environment_for(train_job())
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == kernels_environment(phase)[NAME]


def test_a_training_keeps_the_kernels_of_a_step_and_the_others_few() -> None:
    assert environment_for(train_job())[NAME] == kernels_environment("student")[NAME]
    assert int(kernels_environment("teacher")[NAME]) < int(kernels_environment("student")[NAME])
