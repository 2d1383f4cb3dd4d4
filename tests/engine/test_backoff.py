from __future__ import annotations

import pytest

from engine.backoff import HEAD_CHUNK, HeadBlocks, Step, next_step
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


def head(vocab_size: int, chunk_tokens: int | None = None, device: str = "cpu") -> HeadBlocks:
    return HeadBlocks.of(vocab_size, RunConfig(device=device), chunk_tokens)


def walk_with_head(phase: str, vocab_size: int, **values: object) -> list[str]:
    settings, chunk = RunConfig.model_validate(values), None
    fields = []
    while (step := next_step(phase, settings, head(vocab_size, chunk))) is not None:
        for name, old, new in step.changes:
            assert old != new
            fields.append(name)
            if name == HEAD_CHUNK:
                chunk = new
            else:
                settings = settings.model_copy(update={name: new})
        assert len(fields) < 50, "it never ends"
    return fields


def test_a_large_vocabulary_is_worked_on_in_smaller_chunks_before_anything_slower():
    for vocab_size in (151_936, 262_144):
        teacher = walk_with_head("teacher", vocab_size, teacher_batch=2)
        assert teacher == ["teacher_batch", HEAD_CHUNK, "layer_by_layer", "cpu_offload"]


def test_chunks_of_usual_size_are_cut_at_the_very_last_and_a_students_never():
    assert walk_with_head("teacher", 50_304, teacher_batch=1) == ["layer_by_layer", "cpu_offload", HEAD_CHUNK]
    fields = walk_with_head("student", 262_144, student_batch=1, gradient_accumulation=2, optimizer="adamw")
    assert fields == ["gradient_checkpointing", "cpu_offload"]


def test_a_chunk_is_quartered_and_stays_a_matrix():
    assert head(262_144).quartered() == Step(((HEAD_CHUNK, 48, 12),))
    assert head(50_304).quartered() == Step(((HEAD_CHUNK, 83, 20),))
    assert head(262_144, 12).quartered() is None
    assert not head(262_144, 12).is_large
    assert not head(262_144, device="cuda").is_large


@pytest.mark.parametrize("phase", ["prepare", "teacher", "student"])
def test_memory_that_was_kept_free_is_the_first_thing_to_go(phase):
    path = walk(phase, keep_memory=True, teacher_batch=2, student_batch=2, gradient_accumulation=1)
    assert path[0] == {"keep_memory": False}
    assert path[1:] == walk(phase, keep_memory=False, teacher_batch=2, student_batch=2, gradient_accumulation=1)
