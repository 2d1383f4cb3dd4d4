from __future__ import annotations

import pytest

from engine.backoff import next_step
from engine.config import RunConfig


def walk(phase: str, **values: object) -> list[dict[str, object]]:
    settings = RunConfig.model_validate(values)
    path = []
    while (step := next_step(phase, settings)) is not None:
        changes = {name: new for name, _, new in step.changes}
        settings = settings.model_copy(update=changes)
        path.append(changes)
        assert len(path) < 50, "it never ends"
    return path


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (6, 4), (1, 32), (5, 3)])
def test_the_effective_batch_stays_what_it_was(batch, accumulation):
    settings = RunConfig.model_validate({"student_batch": batch, "gradient_accumulation": accumulation})
    while (step := next_step("student", settings)) is not None:
        settings = settings.model_copy(update={name: new for name, _, new in step.changes})
        assert settings.student_batch * settings.gradient_accumulation == batch * accumulation
    assert settings.student_batch == 1
    assert settings.gradient_checkpointing is True


def test_the_teacher_ends_up_streamed_one_row_at_a_time():
    assert walk("teacher", teacher_batch=4) == [
        {"teacher_batch": 2},
        {"teacher_batch": 1},
        {"layer_by_layer": True},
        {"cpu_offload": True},
    ]


def test_a_student_whose_gradients_are_never_whole_keeps_its_batch_as_long_as_it_can():
    lean = {"student_batch": 4, "gradient_accumulation": 1, "optimizer": "adamw-8bit", "precision": "fp32"}
    assert walk("student", **lean)[:3] == [
        {"gradient_checkpointing": True},
        {"cpu_offload": True},
        {"student_batch": 2, "gradient_accumulation": 2},
    ]
    usual = {**lean, "optimizer": "adamw"}
    assert [list(step) for step in walk("student", **usual)] == [
        ["student_batch", "gradient_accumulation"],
        ["student_batch", "gradient_accumulation"],
        ["gradient_checkpointing"],
        ["cpu_offload"],
    ]


def test_nothing_is_learned_differently_with_less_memory():
    for optimizer in ("adamw", "adamw-8bit"):
        steps = walk("student", student_batch=8, optimizer=optimizer)
        assert not any("optimizer" in step or "sequence_length" in step for step in steps)


def test_nothing_smaller_is_left_in_the_end():
    assert walk("prepare") == []
    assert walk("teacher", teacher_batch=1, layer_by_layer=True, cpu_offload=True) == []
