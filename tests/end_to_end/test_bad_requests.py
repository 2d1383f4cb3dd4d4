"""What cannot be done is said at once: the message, the exit code, and nothing half-made left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.cli.distill import main
from tests.end_to_end.program import QUICK, run, write_texts
from tests.tiny import tiny_model


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


@pytest.fixture
def models(tmp_path: Path) -> list[object]:
    return [
        "--teacher",
        tiny_model("llama"),
        "--student",
        tiny_model("llama", num_layers=2),
        "--output_dir",
        tmp_path / "run",
    ]


def test_a_missing_model_folder(capsys, tmp_path):
    code, told = said(
        capsys, "--teacher", tmp_path / "nowhere", "--student", "from-teacher", "--output_dir", tmp_path / "r"
    )
    assert code == 2
    assert str(tmp_path / "nowhere") in told
    assert not (tmp_path / "r").exists()


def test_nothing_asked_names_what_is_needed(capsys):
    code, told = said(capsys)
    assert code == 2
    assert "--teacher" in told
    assert "--student" in told
    assert "--demo" in told


def test_a_model_that_is_no_causal_language_model(capsys, tmp_path):
    folder = tmp_path / "t5"
    shutil.copytree(tiny_model("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    (folder / "config.json").write_text(json.dumps(config))
    code, told = said(capsys, "--teacher", folder, "--student", "from-teacher", "--output_dir", tmp_path / "r")
    assert code == 2
    assert str(folder) in told
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--samples", "0"], "--samples 0: expected a whole number from 1 up"),
        (["--sequence_length", "4096"], "sequence_length"),
        (["--epochs", "2", "--steps", "5"], "not both"),
        (["--frobnicate", "1"], "--frobnicate"),
        (["--sampels", "1"], "did you mean --samples?"),
        (["--target", "best"], "one of unbiased, topk, ghost, blend"),
        (["--student_layers", "3"], "from-teacher"),
        (["--device", "tpu"], "cuda:N"),
        (["--memory_budget", "lots"], "a size such as"),
        (["--profile", "nobody"], "no such profile"),
    ],
)
def test_a_setting_that_cannot_be(capsys, models, tmp_path, words, expected):
    code, told = said(capsys, *models, *words)
    assert code == 2
    assert expected in told
    assert not (tmp_path / "run").exists()


def test_a_budget_that_is_too_small_is_refused_with_what_would_fit(capsys, models, tmp_path):
    code, told = said(capsys, *models, "--memory_budget", "50MB")
    assert code == 3
    assert "MiB" in told
    assert "--memory_budget" in told
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_else(capsys, models, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    code, told = said(capsys, *models)
    assert code == 2
    assert "not empty" in told
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_resuming_where_there_is_no_run(capsys, tmp_path):
    code, told = said(capsys, "--resume", "--output_dir", tmp_path)
    assert code == 2
    assert "There is no run" in told
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_the_plan_and_makes_nothing(capsys, models, tmp_path):
    assert main([*map(str, models), "--dry_run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["kind"] == "plan"
    assert plan["predicted"]["teacher"]["peak_bytes"] > 0
    assert {"field", "value", "by", "reason"} == set(plan["choices"][0])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: None, "data"),
        (lambda folder: (folder / "empty.txt").write_text(""), "data"),
        (lambda folder: (folder / "photo.png").write_bytes(b"\x89PNG"), "data"),
    ],
    ids=["an empty folder", "an empty file", "no text"],
)
def test_data_without_text(models, tmp_path, make, expected):
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    done = run(*models, "--data", folder, *QUICK)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_text_field_names_those_that_exist(models, tmp_path):
    done = run(*models, "--data", write_texts(tmp_path / "data"), "--text_field", "body", *QUICK)
    assert done.returncode == 2
    assert "text" in done.stderr
    assert "body" in done.stderr


def test_another_tokenizer_is_refused(tmp_path):
    student = tmp_path / "student"
    shutil.copytree(tiny_model("llama", num_layers=2), student)
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = run("--teacher", tiny_model("llama"), "--student", student, "--output_dir", tmp_path / "run", *QUICK)
    assert done.returncode == 2
    assert "tokenizer" in done.stderr.lower()
