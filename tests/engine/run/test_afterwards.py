"""Next steps of a finished run, as commands that work."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.cli import cache, chat, export
from engine.cli.arguments import parse
from engine.errors import RequestError
from engine.run import launch
from engine.run import report as reports
from engine.run.afterwards import _asked, about_the_student, in_words, next_steps
from engine.run.onward import expanded
from engine.settings.config import RunConfig
from engine.talk.speed import keep_speed, keep_speeds, speeds
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


def test_a_prompt_keeps_the_line_ends_of_its_template():
    """They were blanks, and a template with blanks for line ends is not the one that the student learned."""
    rendered = "<|im_start|>user\nWhere is  the lamp?<|im_end|>\n<|im_start|>assistant\n"
    (step,) = (
        each
        for each in next_steps({**REPORT, "samples": [{"prompt": rendered}]}, Path("run"))
        if each.key == "transformers"
    )
    assert "\n" not in step.line
    told = step.words[2].replace("print(pipeline", "found = (pipeline")
    ours = SimpleNamespace(argv=["", "student", step.words[-1]])
    heard: list[str] = []

    def pipeline(_kind, _folder):
        return lambda prompt, **_named: heard.append(prompt) or [{"generated_text": ""}]

    exec(told.replace("import sys; from transformers import pipeline; ", ""), {"sys": ours, "pipeline": pipeline})
    assert heard == [rendered.replace("  ", " ")]


def test_programs_take_their_words(tmp_path):
    by_key = {step.key: step.words for step in next_steps(REPORT, tmp_path)}
    for key in ("talk", "beside"):
        assert chat._parse(by_key[key][1:]).folder == str(tmp_path)
    for key in ("gguf", "ollama"):
        assert export._parse(by_key[key][1:]).format == key
    longer, _ = parse(by_key["longer"][1:], program="tiny-distill", description="")
    assert RunConfig.parse(longer).resume
    assert by_key["cache"][0] == cache.PROGRAM


def finished_run(folder: Path, **settings: Any) -> Path:
    """A run's folder with a student, and with the settings of the report."""
    shutil.copytree(tiny_model("llama"), folder / "student")
    (folder / "cache").mkdir()
    info = {
        "format": 1,
        "name": folder.name,
        "settings": {**REPORT["config"], **settings},
        "asked": {**_asked(REPORT), **settings},
    }
    (folder / "run.json").write_text(json.dumps(info))
    return folder


ADAPTED = {
    "lora_rank": 8,
    "lora_alpha": 4.0,
    "lora_targets": "q_proj",
    "student_quantization": "nf4",
    "learning_rate": 0.01,
}


@pytest.mark.parametrize("way", ["start_from", "records_from"])
def test_what_an_adapter_was_asked_for_is_not_taken_over_by_all_weights_or_the_other_way_round(way, tmp_path):
    """The rate of one is wrong for the other, and settings of an adapter alone would be refused."""
    adapted = finished_run(tmp_path / "adapted", **ADAPTED)
    whole = finished_run(tmp_path / "whole", lora_rank=0, learning_rate=0.001)

    def expand(run: Path, *words: str) -> RunConfig:
        values, _ = parse((f"--{way}", str(run), *words), program="tiny-distill", description="")
        return expanded(RunConfig.parse(values))

    again = expand(adapted)
    assert (again.lora_rank, again.learning_rate, again.student_quantization) == (8, 0.01, "nf4")
    assert again.lora_targets == ("q_proj" if way == "start_from" else None), "another student has other layers"
    assert expand(adapted, "--lora_rank", "16").learning_rate == 0.01
    all_weights = expand(adapted, "--lora_rank", "0")
    assert (all_weights.learning_rate, all_weights.lora_alpha, all_weights.student_quantization) == (None, None, "none")
    assert expand(adapted, "--lora_rank", "0", "--learning_rate", "0.002").learning_rate == 0.002
    assert expand(whole).learning_rate == 0.001
    assert expand(whole, "--lora_rank", "4").learning_rate is None
    divided = finished_run(tmp_path / "divided", student_sharded=True, processes=2)
    assert expand(divided).student_sharded
    assert expand(divided, "--lora_rank", "4").student_sharded is None, "an adapter is not divided"
    streamed = expand(whole, "--student_layer_by_layer")
    assert (streamed.learning_rate, streamed.lora_rank, streamed.wants_adapter) == (None, None, True)


def test_second_student_is_asked_for_with_the_records_that_are_there(tmp_path):
    step = next(step for step in next_steps(REPORT, tmp_path) if step.key == "another")
    finished_run(tmp_path)
    typed, _ = parse(list(step.words[1:]), program="tiny-distill", description="")
    asked = launch.config_from(typed)
    made_with = RunConfig.parse(REPORT["config"])
    for name in ("teacher", "data", "samples", "sequence_length", "packing", "holdout", "seed", "record_size"):
        assert getattr(asked, name) == getattr(made_with, name), name
    assert asked.student == "from-teacher"
    assert asked.cache_dir == tmp_path / "cache"
    assert asked.output_dir is None
    assert asked.records_from is None
    assert RunConfig.parse(dict(step.values)) == asked


def test_another_run_begins_with_the_student_and_a_lower_rate(tmp_path):
    report = {**REPORT, "config": {**REPORT["config"], "learning_rate": 2e-4}}
    step = next(step for step in next_steps(report, tmp_path) if step.key == "onward")
    finished_run(tmp_path)
    typed, _ = parse(list(step.words[1:]), program="tiny-distill", description="")
    asked = launch.config_from(typed)
    assert asked == expanded(RunConfig.parse(typed)), "the Python interface reads it alike"
    assert asked.student == str(tmp_path / "student")
    assert asked.learning_rate == pytest.approx(6e-5)
    assert asked.cache_dir == tmp_path / "cache"
    assert asked.teacher == REPORT["config"]["teacher"]
    assert asked.start_from is None
    assert asked.output_dir is None
    assert RunConfig.parse(dict(step.values)).student == asked.student


def test_settings_that_are_given_count_more_than_those_of_the_earlier_run(tmp_path):
    run = finished_run(tmp_path / "run", steps=30, target="topk", text_field="body", output_dir=str(tmp_path / "run"))
    new = launch.config_from({"start_from": str(run), "data": "notes/", "epochs": 2, "kd_weight": 0.5})
    assert (new.data, new.epochs, new.kd_weight, new.target) == ("notes/", 2, 0.5, "topk")
    assert new.steps is None
    assert new.text_field is None, "it belongs to the old text"
    assert new.teacher == REPORT["config"]["teacher"]
    assert new.cache_dir is None, "records of other rows do not go into the earlier run's folder"
    second = launch.config_from({"records_from": str(run), "student": "models/small"})
    assert (second.student, second.target, second.steps) == ("models/small", "topk", 30)
    assert second.output_dir is None
    assert launch.config_from({"records_from": str(run), "student_layers": "0,2"}).student == "from-teacher"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"start_from": "RUN", "student": "models/small"}, "leave it out"),
        ({"start_from": "RUN", "student_layers": 2}, "needs --student from-teacher"),
        ({"start_from": "RUN", "records_from": "RUN"}, "not both"),
        ({"start_from": "RUN", "resume": True, "output_dir": "x"}, "is for a new run"),
        ({"records_from": "RUN", "demo": True}, "is for a new run"),
        ({"records_from": "RUN", "sequence_length": 7}, "were made with"),
        ({"records_from": "RUN", "data": "notes/"}, "were made with"),
        ({"start_from": "nowhere"}, "There is no run in"),
        ({"records_from": "nowhere"}, "There is no run in"),
    ],
)
def test_what_contradicts_an_earlier_run_is_said(tmp_path, values, said):
    run = str(finished_run(tmp_path / "run"))
    with pytest.raises(RequestError) as caught:
        launch.config_from({name: run if value == "RUN" else value for name, value in values.items()})
    assert said in caught.value.paragraph()


def test_a_run_without_a_student_is_no_start(tmp_path):
    run = finished_run(tmp_path / "run")
    (run / "student" / "config.json").unlink()
    with pytest.raises(RequestError, match="has no student yet") as caught:
        launch.config_from({"start_from": str(run)})
    assert f"--resume --output_dir {run}" in caught.value.todo


def test_a_demo_is_started_from_with_its_own_models(tmp_path):
    run = finished_run(tmp_path / "run", demo=True)
    for flag in ("start_from", "records_from"):
        asked = launch.config_from({flag: str(run)})
        assert not asked.demo
        assert asked.teacher == REPORT["config"]["teacher"]
        assert asked.data == REPORT["config"]["data"]


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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"after": 60.0, "teacher": 20.0}', "60.0 tokens/s (its teacher 20.0) last time; other programs slow both"),
        ('{"after": 20.0, "teacher": 60.0}', "20.0 tokens/s (its teacher 60.0) last time; other programs slow both"),
        ('{"after": 60.0, "before": 3.0}', "60.0 tokens/s last time; other programs slow it"),
        ('{"teacher": 20.0}', None),
        ('{"after": "fast", "teacher": true}', None),
        ('{"after": NaN}', None),
        ("[]", None),
        ("", None),
    ],
)
def test_the_last_measured_speed_is_told_beside_the_teachers(tmp_path, content, words):
    if content:
        (tmp_path / "talk.json").write_text(content)
    lines = about_the_student({}, tmp_path)
    told = [line for line in lines if line.startswith("It wrote")]
    assert told == ([f"It wrote {words}"] if words else [])


def test_the_newest_speed_of_each_model_is_kept_and_a_folder_that_takes_no_file_is_no_error(tmp_path):
    for side, rate in (("after", 3.0), ("teacher", 2.0), ("after", 4.0), ("before", None)):
        keep_speed(tmp_path, side, rate)
    assert speeds(tmp_path) == {"after": 4.0, "teacher": 2.0}
    keep_speeds(tmp_path, {"before": 1.0, "after": 0.1, "teacher": None})
    assert speeds(tmp_path) == {"after": 4.0, "teacher": 2.0}, "one of two is not measured at the same time"
    keep_speeds(tmp_path, {"before": 1.0, "after": 3.0, "teacher": 1.5})
    assert speeds(tmp_path) == {"before": 1.0, "after": 3.0, "teacher": 1.5}
    keep_speed(tmp_path / "nowhere", "after", 3.0)
    assert speeds(tmp_path / "nowhere") == {}


def test_the_report_leaves_the_commands_in_the_runs_folder(tmp_path, monkeypatch):
    run = SimpleNamespace(
        path=tmp_path,
        name="a-run",
        settings=None,
        student_path=None,
        report_json=tmp_path / "report.json",
        report_md=tmp_path / "report.md",
        next_txt=tmp_path / "next.txt",
        events_path=tmp_path / "events.jsonl",
        pictures_path=tmp_path / "pictures",
    )
    monkeypatch.setattr(reports, "build", lambda run: REPORT)
    monkeypatch.setattr(reports, "in_words", lambda report, name, pictures: "")
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


@pytest.mark.parametrize("why", ["steps", "teacher"])
def test_a_student_that_got_worse_is_trained_again_from_its_records_and_not_longer(tmp_path, why):
    after = {**REPORT["student_after"], "holdout_loss": REPORT["student_before"]["holdout_loss"] + 1}
    report = {**REPORT, "student_after": after, "config": {**REPORT["config"], "learning_rate": 2e-3}}
    if why == "teacher":
        report["teacher"] = {**REPORT["teacher"], "holdout_loss": after["holdout_loss"] + 1}
    else:
        after["kl_to_teacher"] = 9.0
    steps = {step.key: step for step in next_steps(report, tmp_path)}
    assert {"longer", "onward"}.isdisjoint(steps)
    assert next(iter(steps)) == "again"
    finished_run(tmp_path)
    typed, _ = parse(list(steps["again"].words[1:]), program="tiny-distill", description="")
    asked = launch.config_from(typed)
    assert asked == RunConfig.parse(dict(steps["again"].values))
    assert asked.cache_dir == tmp_path / "cache"
    assert asked.student == REPORT["config"]["student"]
    assert asked.student_layers == REPORT["config"].get("student_layers")
    changed = ("learning_rate", 2e-4) if why == "steps" else ("kd_weight", 0.5)
    assert getattr(asked, changed[0]) == pytest.approx(changed[1])
