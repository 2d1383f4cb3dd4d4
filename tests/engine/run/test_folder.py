from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from engine.disk import file_lock
from engine.errors import CorruptState, FolderError, SettingsError
from engine.planner.prediction import PhasePrediction, Plan
from engine.run.folder import Run
from engine.settings.config import RunConfig
from tests.jobs import complete, jobs


def small_plan(**values: object) -> Plan:
    settings = complete(**{"seed": 3, **values})
    phase = PhasePrediction(peak_bytes=1, seconds=1.0, seconds_error=0.5, parts={}, ram_bytes=1)
    return Plan(
        settings=settings,
        choices=(),
        predicted={"teacher": phase, "student": phase},
        disk_bytes=5,
        total_steps=None,
        misfit=None,
        jobs=jobs(settings),
    )


def make_run(path, **values: object) -> Run:
    return Run.create(path, RunConfig.parse({"teacher": "t", "student": "s"}), small_plan(**values))


def test_a_run_is_opened_with_what_it_was_created_with(tmp_path):
    made = make_run(tmp_path / "run")
    opened = Run.open(tmp_path / "run")
    assert opened.settings == made.settings
    assert opened.info["asked"] == {"teacher": "t", "student": "s"}


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match="not empty"):
        make_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_second_run_in_the_same_folder_is_refused_with_the_command_that_resumes(tmp_path):
    make_run(tmp_path / "run")
    with pytest.raises(FolderError) as caught:
        make_run(tmp_path / "run")
    assert "tiny-distill --resume --output_dir" in caught.value.todo


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99, "settings": {}}', '{"format": 1}'])
def test_a_run_json_that_is_not_one_is_said(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CorruptState):
        Run.open(tmp_path)


def test_one_supervisor_at_a_time_holds_a_run_and_its_lock_goes_with_the_process(tmp_path):
    run = make_run(tmp_path / "run")
    program = (
        "import sys; from pathlib import Path; from engine.run.folder import Run\n"
        "with Run.open(Path(sys.argv[1])).lock():\n    print('held', flush=True); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == "held\n"
    assert run.is_live()
    with pytest.raises(FolderError, match="already running"), run.lock():
        pass
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert not run.is_live()
    with run.lock():
        pass


@pytest.mark.parametrize("content", ["", f"{os.getpid()}\n"], ids=["a new run", "its process id was given to another"])
def test_a_reader_that_tries_the_lock_is_not_taken_for_a_supervisor(tmp_path, content):
    run = make_run(tmp_path / "run")
    lock = run.path / "lock"
    lock.write_text(content)
    with lock.open() as reader:
        assert file_lock.try_flock(reader.fileno(), shared=True)
        threading.Timer(0.2, file_lock.unlock, [reader.fileno()]).start()
        with run.lock():
            pass


def test_settings_that_would_falsify_what_is_there_may_not_change(tmp_path):
    run = make_run(tmp_path / "run")
    run.change({"epochs": 4})
    assert Run.open(run.path).settings.epochs == 4
    with pytest.raises(SettingsError) as caught:
        run.change({"seed": 5, "temperature": 2.0, "epochs": 5})
    assert [problem.setting for problem in caught.value.problems] == ["seed", "temperature"]
    assert Run.open(run.path).settings.epochs == 4


def test_a_phase_is_done_when_its_result_is_there_whole(tmp_path):
    run = make_run(tmp_path / "run")
    assert run.result("teacher") is None
    run.finish_phase("teacher", {"tokens": 7})
    assert run.result("teacher") == {"tokens": 7}
    (run.phases_path / "teacher.json").write_text('{"tok')
    assert run.result("teacher") is None


def test_run_json_is_plain_json(tmp_path):
    run = make_run(tmp_path / "run", output_dir=str(tmp_path / "run"))
    assert json.loads(run.run_json.read_text())["settings"]["output_dir"] == str(tmp_path / "run")


def test_run_json_that_was_changed_is_refused_and_one_without_a_checksum_is_read(tmp_path):
    make_run(tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    info = json.loads(file.read_text())
    info["settings"]["seed"] = 4
    file.write_text(json.dumps(info))
    with pytest.raises(CorruptState, match="its checksum does not match"):
        Run.open(tmp_path / "run")
    del info["checksum"]
    file.write_text(json.dumps(info))
    assert Run.open(tmp_path / "run").settings.seed == 4


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("steps", "many", "--steps many: expected a whole number"), ("colour", "red", "there is no such setting")],
)
def test_a_setting_that_was_changed_to_one_that_cannot_be_used_is_named(tmp_path, name, value, said):
    make_run(tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    info = json.loads(file.read_text())
    info["settings"][name] = value
    del info["checksum"]
    file.write_text(json.dumps(info))
    with pytest.raises(CorruptState, match=r"settings in .* cannot be used") as caught:
        Run.open(tmp_path / "run")
    assert said in caught.value.what


@pytest.mark.parametrize("folder", [".", "phases", "pictures", "student"])
def test_what_a_killed_writer_left_is_removed_from_every_folder_of_the_run(tmp_path, folder):
    run = make_run(tmp_path / "run")
    place = run.path / folder
    place.mkdir(exist_ok=True)
    (place / "loss.svg.4454.tmp").write_text("half")
    (place / "loss.svg").write_text("whole")
    run.sweep()
    assert sorted(path.name for path in place.glob("loss*")) == ["loss.svg"]
