"""How many matrix product kernels a phase's process keeps, however it was made; and whether there are any in bf16."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.disk import places
from engine.machine import kernels
from engine.machine.kept_fact import KeptFact
from engine.machine.kernels import has_half_kernels, keep_half_kernels, kernels_environment
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


def a_processor(monkeypatch: pytest.MonkeyPatch, *features: str) -> None:
    monkeypatch.setattr(kernels, "_this_machine", lambda: ("2.13.0", ("A processor", features)))
    monkeypatch.setattr(kernels, "_ANSWER", KeptFact("half_kernels"))  # another process


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (("AVX2",), False),
        (("AVX2", "AVX-512"), True),
        (("AVX2", "AVX-512", "AVX-512 BF16", "AMX BF16", "AMX"), True),
        (("NEON",), False),
        (("NEON", "BF16"), True),
        ((), True),  # unknown
    ],
)
def test_before_the_probe_the_instruction_sets_say_whether_half_precision_has_kernels(
    features: tuple[str, ...], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_processor(monkeypatch, *features)
    assert has_half_kernels() is expected


def test_torchs_answer_is_kept_for_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    a_processor(monkeypatch, "AVX2")
    keep_half_kernels(True)  # AVX-NE-CONVERT, which has no name here
    a_processor(monkeypatch, "AVX2")
    assert has_half_kernels()
    a_processor(monkeypatch, "AVX2", "AVX-512")
    keep_half_kernels(False)  # a build without oneDNN
    assert not has_half_kernels()
    a_processor(monkeypatch, "AVX2")
    assert has_half_kernels()


@pytest.mark.parametrize("words", ["", "[]", "{}", '{"half_kernels": "yes"}'])
def test_a_damaged_answer_is_none(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a_processor(monkeypatch, "AVX2")
    keep_half_kernels(True)
    (kept,) = places.cache().glob("kernels-*.json")
    kept.write_text(words)
    a_processor(monkeypatch, "AVX2")
    assert not has_half_kernels()


def test_the_probe_asks_torch(machine_is_measured: None) -> None:
    (kept,) = places.cache().glob("kernels-*.json")
    assert json.loads(kept.read_text())["half_kernels"] in (True, False)
