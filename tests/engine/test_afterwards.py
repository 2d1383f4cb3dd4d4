"""What can be done with a finished run, as commands that run."""

import json
import shlex
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from engine import report as reports
from engine.afterwards import about_the_student, in_words, next_steps
from engine.cli import cache, chat, export
from engine.cli.arguments import parse
from engine.config import RunConfig
from tests.tiny import tiny_model
from tests.tinydistill_tui.fixtures import REPORT

ODD = ("a folder; rm -rf $HOME 'x'", "notes-0412", "two\nlines", "ünicode")


@pytest.mark.parametrize("name", ODD)
def test_commands_run_in_a_shell_as_they_are(tmp_path, name):
    folder = tmp_path / name
    for step in next_steps(REPORT, folder):
        words = shlex.split(step.line)
        assert any(str(folder) in word for word in words), step.line
        assert words[: len(step.words)] == list(step.words)
        subprocess.run(["sh", "-n", "-c", step.line], check=True)
    try_it = next(step.words for step in next_steps(REPORT, folder) if step.key == "transformers")
    compile(try_it[2], "command", "exec")
    assert try_it[3:] == (str(folder / "student"), "The best time to visit Porto is")


def test_programs_take_their_words(tmp_path):
    by_key = {step.key: step.words for step in next_steps(REPORT, tmp_path)}
    for key in ("talk", "beside"):
        assert chat._parse(by_key[key][1:]).folder == str(tmp_path)
    for key in ("gguf", "ollama"):
        assert export._parse(by_key[key][1:]).format == key
    longer, _ = parse(by_key["longer"][1:], program="tiny-distill", description="")
    assert RunConfig.parse(longer).resume
    assert by_key["cache"][0] == cache.PROGRAM


def test_second_student_is_asked_for_with_the_records_that_are_there(tmp_path):
    step = next(step for step in next_steps(REPORT, tmp_path) if step.key == "another")
    typed, _ = parse(list(step.words[1:]), program="tiny-distill", description="")
    asked = RunConfig.parse(typed)
    made_with = RunConfig.parse(REPORT["config"])
    for name in ("teacher", "data", "samples", "sequence_length", "packing", "holdout", "seed", "record_size"):
        assert getattr(asked, name) == getattr(made_with, name), name
    assert asked.student == "from-teacher"
    assert asked.cache_dir == tmp_path / "cache"
    assert asked.output_dir is None
    assert RunConfig.parse(dict(step.values)) == asked


def test_student_is_described_beside_its_teacher_and_without_it(tmp_path):
    shutil.copytree(tiny_model("llama"), tmp_path / "student")
    report = {**REPORT, "config": {**REPORT["config"], "teacher": str(tiny_model("llama", hidden_size=64))}}
    lines = about_the_student(report, tmp_path)
    assert lines[0] == f"The student: {tmp_path / 'student'}"
    assert "parameters (its teacher" in lines[1]
    assert "B (" in lines[1]  # bytes beside bytes
    gone = about_the_student({**report, "config": {"teacher": str(tmp_path / "gone")}}, tmp_path)
    assert "its teacher" not in gone[1]
    shutil.rmtree(tmp_path / "student")
    assert about_the_student(report, tmp_path) == lines[:1]


def test_the_report_leaves_the_commands_in_the_runs_folder(tmp_path, monkeypatch):
    run = SimpleNamespace(
        path=tmp_path,
        name="a-run",
        settings=None,
        student_path=None,
        report_json=tmp_path / "report.json",
        report_md=tmp_path / "report.md",
        next_txt=tmp_path / "next.txt",
    )
    monkeypatch.setattr(reports, "build", lambda run: REPORT)
    monkeypatch.setattr(reports, "in_words", lambda report, name: "")
    monkeypatch.setattr(reports, "forget_slow_rates", lambda *_: None)
    reports.write(run)
    text = (tmp_path / "next.txt").read_text()
    assert text == in_words(REPORT, tmp_path)
    assert all(step.line in text for step in next_steps(REPORT, tmp_path))
    assert "It answers like its teacher" in text.splitlines()[0]


@pytest.mark.parametrize("odd", [{}, {"config": None}, {"config": {"steps": "x", "epochs": None}, "samples": [3]}])
def test_odd_report_has_commands_all_the_same(tmp_path, odd):
    keys = [step.key for step in next_steps(json.loads(json.dumps(odd)), tmp_path)]
    assert {"talk", "gguf", "longer", "folder"} <= set(keys)
