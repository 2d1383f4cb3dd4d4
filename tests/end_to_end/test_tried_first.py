"""Everything that the end of a run needs is tried before the teacher begins; if the end fails, nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.program import QUICK, events, run, write_texts
from tests.tiny import VOCAB_SIZE, tiny_model

pytestmark = pytest.mark.slow

FEW = [*QUICK, "--samples", 20, "--steps", 2]


def student(tmp_path: Path, name: str = "student") -> Path:
    return shutil.copytree(tiny_model("llama", num_layers=2, seed=1), tmp_path / name)


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def distil(tmp_path: Path, *words: object, teacher: Path | None = None, name: str = "student") -> Any:
    data = write_texts(tmp_path / "data")
    return run(
        *("--teacher", teacher or tiny_model("llama"), "--student", tmp_path / name, "--data", data),
        *("--output_dir", tmp_path / "run", *FEW, *words),
    )


def test_a_tokenizer_of_the_future_is_found_before_the_teacher_begins(tmp_path: Path) -> None:
    edit(student(tmp_path) / "tokenizer.json", pre_tokenizer={"type": "FutureSplit"})
    done = distil(tmp_path)
    assert done.returncode == 2
    assert "The tokenizer in" in done.stderr
    assert "cannot be loaded" in done.stderr
    assert not (tmp_path / "run" / "cache").exists()


def test_one_added_token_more_is_in_the_plan_and_the_run_continues_without_it(tmp_path: Path) -> None:
    folder = student(tmp_path)
    edit(folder / "added_tokens.json", **{"<|tool|>": VOCAB_SIZE})
    planned = distil(tmp_path, "--dry_run", "--json")
    choices = {choice["field"]: choice for choice in json.loads(planned.stdout.splitlines()[0])["choices"]}
    assert "1 id of the student ('<|tool|>') is not taught" in choices["student"]["reason"]
    done = distil(tmp_path, "--until", "prepare")
    assert done.returncode == 0, done.stderr
    assert any(event.get("code") == "untaught-ids" for event in events(tmp_path / "run"))


def test_a_generation_config_that_contradicts_itself_loses_the_contradiction_only(tmp_path: Path) -> None:
    edit(student(tmp_path) / "generation_config.json", num_return_sequences=2, eos_token_id=0)
    done = distil(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "num_return_sequences" not in json.loads((tmp_path / "run/student/generation_config.json").read_text())
    assert any("num_return_sequences = 2" in event.get("message", "") for event in events(tmp_path / "run"))


def test_an_end_that_fails_keeps_the_training_and_continues_once_it_is_fixed(tmp_path: Path) -> None:
    folder = student(tmp_path)
    assert distil(tmp_path, "--until", "teacher").returncode == 0
    good = (folder / "tokenizer.json").read_bytes()
    edit(folder / "tokenizer.json", pre_tokenizer={"type": "FutureSplit"})
    failed = run("--resume", "--output_dir", tmp_path / "run")
    assert failed.returncode == 4
    assert "The training is done and kept, and the student could not be written" in failed.stderr
    assert f"--resume --output_dir {tmp_path / 'run'}" in failed.stderr
    (folder / "tokenizer.json").write_bytes(good)
    steps = sum(event["kind"] == "metric" for event in events(tmp_path / "run"))
    assert run("--resume", "--output_dir", tmp_path / "run").returncode == 0
    assert (tmp_path / "run" / "student" / "tokenizer.json").read_bytes() == good
    assert sum(event["kind"] == "metric" for event in events(tmp_path / "run")) == steps, "nothing is trained again"
