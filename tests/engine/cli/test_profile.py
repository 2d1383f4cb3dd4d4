"""tiny-distill-profile, as it is typed; the machine is measured once for real."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from engine.cli import profile
from engine.planner import place
from engine.run import launch
from tests.engine.planner.machines import LAPTOP_GPU, RATES, computer
from tests.tiny import tiny_model


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(launch, "machine_rates", lambda **_: RATES)
    text = tmp_path / "notes.txt"
    text.write_text("A small model learns from what a large model would have said. " * 500)
    folder = str(tiny_model("llama"))
    return ["--teacher", folder, "--student", "from-teacher", "--data", str(text), "--sequence-length", "64"]


def test_the_table_has_a_rung_for_each_saving(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main(words) == 0
    shown = capsys.readouterr().out
    for label in ("whole teacher", "streamed", "plain AdamW", "8-bit", "recomputed"):
        assert label in shown
    assert "MiB" in shown
    assert "fits" in shown
    assert max(map(len, shown.splitlines()[1:])) <= 80  # but for the models' names


def test_a_budget_that_nothing_fits_is_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main([*words, "--memory_budget", "100MB"]) == 0
    shown = capsys.readouterr().out
    assert "fits  " not in shown
    assert "No setting of the teacher fits the budget." in shown
    assert "No setting of the student fits the budget." in shown


def test_json_has_one_object_a_line_with_memory_disk_and_time(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile.main([*words, "--json"]) == 0
    rungs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {rung["phase"] for rung in rungs} == {"teacher", "student"}
    for rung in rungs:
        assert rung["predicted_peak_bytes"] == sum(rung["parts"].values())
        assert rung["predicted_seconds"] > 0
        assert rung["disk_bytes"] > 0
        assert rung["fits"] is True


def test_what_is_set_stays_on_every_rung(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main([*words, "--json", "--student-batch", "3", "--optimizer", "adamw"]) == 0
    rungs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    students = [rung["settings"] for rung in rungs if rung["phase"] == "student"]
    assert {(settings["student_batch"], settings["optimizer"]) for settings in students} == {(3, "adamw")}


def test_the_machine_is_measured_on_the_device_that_is_planned(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(launch, "machine_rates", lambda **what: asked.append(what) or RATES)
    assert profile.main([*words, "--threads", "4", "--processes", "2"]) == 0
    assert asked == [{"measure": True, "device": "cpu", "threads": 2}]
    monkeypatch.setattr(place.machine_hardware, "detect", lambda _: computer(gpus=(LAPTOP_GPU,)))
    monkeypatch.setattr(place, "checked", lambda found: found)
    monkeypatch.setattr(place, "torch_version", lambda: "2.13.0+cu126")
    asked.clear()
    assert profile.main([*words, "--threads", "4"]) == 0
    assert asked == [{"measure": True, "device": "cuda:0", "threads": 4}]


def test_a_request_that_cannot_be_ends_with_2_and_a_sentence_before_the_machine_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(launch, "machine_rates")
    assert profile.main(["--teacher", "/nowhere", "--student", "from-teacher"]) == 2
    assert "There is no folder /nowhere" in capsys.readouterr().err
    assert profile.main(["--measured"]) == 2
    assert "did you mean --measure" in capsys.readouterr().err


def test_help_needs_no_model_and_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        profile.main(["--help"])
    assert ended.value.code == 0
    assert "--measure" in capsys.readouterr().out


def test_what_is_larger_than_what_is_free_is_not_tried(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile.hardware, "available_bytes", lambda: 200 * 2**20)
    assert profile.main([*words, "--measure", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("not measured: only 200 MiB are free") == shown.count("teacher  ") + shown.count("student  ")
    assert max(map(len, shown.splitlines()[1:])) <= 80


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_no_folder(words: list[str], tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    program = "import sys\nfrom engine.cli.profile import main\nsys.exit(main())"
    command = [sys.executable, "-c", program, *words, "--measure", "--device", "cpu"]
    with subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(scratch)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as profiling:
        # It has worked for a moment: its parent knows of it.
        phases = _wait_for(lambda: [pid for pid in _below(profiling.pid) if _has_worked(pid)])
        assert list(scratch.iterdir()) != []
        profiling.send_signal(signal.SIGINT)
        _, said = profiling.communicate(timeout=300)
    assert profiling.returncode == 130
    assert said.strip() == "Stopped."
    assert list(scratch.iterdir()) == []
    assert not any("engine.phases.process" in _words(pid) for pid in phases)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what Python does with it
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_ctrl_c_that_python_drops_is_kept(
    form: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Destroyed:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    measured = []

    def measure(*_: object) -> dict[str, None]:
        measured.append(Destroyed())
        measured[-1] = None
        return {}

    monkeypatch.setattr(profile, "_measured", measure)
    assert profile.main([*words, *form, "--measure"]) == 130
    assert measured == [None]
    assert "Stopped." in capsys.readouterr().err


def _has_worked(pid: int) -> bool:
    try:
        return "engine.phases.process" in _words(pid) and psutil.Process(pid).cpu_times().user > 0.2
    except psutil.Error:
        return False


def _wait_for(look: Callable[[], list[int]]) -> list[int]:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


def _below(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _words(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
def test_measured_peaks_stand_beside_the_predicted_ones(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    had_torch = "torch" in sys.modules
    assert profile.main([*words, "--json", "--measure", "--threads", "1"]) == 0
    rungs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for rung in rungs:
        assert rung.get("problem") is None
        assert 0.85 < rung["predicted_over_measured"] < 1.15, rung
    assert ("torch" in sys.modules) == had_torch
