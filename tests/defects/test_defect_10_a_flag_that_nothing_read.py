"""``--layer_by_layer`` was a flag that nothing read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from engine.models.core import find_core
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from engine.phases.prepare import teacher_spec
from engine.phases.teacher import load_teacher
from engine.run.folder import Run
from engine.settings.config import SETTINGS
from tests.engine.teacher.test_score import run, token_file
from tests.jobs import score_job
from tests.tiny import tiny_model

ENGINE = Path(__file__).parents[2] / "engine"


def test_with_layer_by_layer_no_more_than_one_layer_is_in_the_model(tmp_path: Path) -> None:
    teacher = StreamedTeacher(tiny_model("llama", num_layers=4), dtype=torch.float32, device=torch.device("cpu"))
    layers = find_core(teacher.model).layers
    in_memory: list[list[int]] = []

    def look(*_: object) -> None:
        in_memory.append([index for index, layer in enumerate(layers) if not next(layer.parameters()).is_meta])

    for layer in layers:
        layer.mlp.register_forward_pre_hook(look)
    run(teacher, token_file(tmp_path / "tokens.h5", train=2, holdout=0, short=False), tmp_path / "cache")
    assert in_memory == [[0], [1], [2], [3]]


@pytest.mark.parametrize(("flag", "kind"), [(True, StreamedTeacher), (False, ResidentTeacher)])
def test_the_phase_takes_the_teacher_that_the_flag_asks_for(tmp_path: Path, flag: bool, kind: type) -> None:
    job = score_job(teacher=str(tiny_model("llama")), layer_by_layer=flag, sequence_length=8)
    teacher = load_teacher(Run(tmp_path, {}), job, teacher_spec(job), torch.device("cpu"), torch.float32)
    assert isinstance(teacher, kind)


def test_every_setting_is_read_by_some_code() -> None:
    read: set[str] = set()
    for path in ENGINE.rglob("*.py"):
        if path.name in ("config.py", "settings.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "values.get":  # before there is a RunConfig
                read |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    renamed = {"json": "json_events"}
    assert {name for name in SETTINGS if renamed.get(name, name) not in read} == set()
