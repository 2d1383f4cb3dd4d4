from __future__ import annotations

import pytest

from engine.jobs import Job
from engine.run.backoff import next_step, step_that_fits
from tests.jobs import complete, jobs, score_job, train_job

HEAD_CHUNK = "head_chunk_tokens"


def a_job(name: str, vocab_size: int = 1000, **values: object) -> Job:
    return next(job for job in jobs(complete(**values), vocab_size) if job.name == name)


def walk(name: str, vocab_size: int = 1000, **values: object) -> list[dict[str, object]]:
    job = a_job(name, vocab_size, **values)
    path = []
    while (step := next_step(job)) is not None:
        assert all(getattr(job, field) == old != new for field, old, new in step.changes)
        changes = {field: new for field, _, new in step.changes}
        job = job.changed(changes)
        path.append(changes)
        assert len(path) < 50, "it never ends"
    return path


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (6, 4), (1, 32), (5, 3)])
def test_the_effective_batch_stays_what_it_was(batch, accumulation):
    job = train_job(student_batch=batch, gradient_accumulation=accumulation)
    while (step := next_step(job)) is not None:
        job = job.changed({name: new for name, _, new in step.changes})
        assert job.student_batch * job.gradient_accumulation == batch * accumulation
    assert job.student_batch == 1
    assert job.gradient_checkpointing is True


def test_the_teacher_ends_up_streamed_one_row_at_a_time():
    assert walk("teacher", teacher_batch=4) == [
        {"teacher_batch": 2},
        {"teacher_batch": 1},
        {"layer_by_layer": True},
        {"cpu_offload": True},
        {HEAD_CHUNK: 64},
        {HEAD_CHUNK: 16},
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
    assert walk("teacher", teacher_batch=1, layer_by_layer=True, cpu_offload=True, vocab_size=262_144)[1:] == []


def fields(name: str, vocab_size: int, **values: object) -> list[str]:
    return [field for changes in walk(name, vocab_size, **values) for field in changes]


def test_a_large_vocabulary_is_worked_on_in_smaller_chunks_before_anything_slower():
    for vocab_size in (151_936, 262_144):
        teacher = fields("teacher", vocab_size, teacher_batch=2)
        assert teacher == ["teacher_batch", HEAD_CHUNK, "layer_by_layer", "cpu_offload"]


def test_chunks_of_usual_size_are_cut_at_the_very_last_and_a_students_never():
    assert fields("teacher", 50_304, teacher_batch=1) == ["layer_by_layer", "cpu_offload", HEAD_CHUNK]
    student = fields("student", 262_144, student_batch=1, gradient_accumulation=2, optimizer="adamw")
    assert student == ["gradient_checkpointing", "cpu_offload"]


@pytest.mark.parametrize(
    ("vocab_size", "device", "steps"),
    [(262_144, "cpu", [(48, 12)]), (50_304, "cpu", [(83, 20)]), (262_144, "cuda", [(128, 32), (32, 8)])],
)
def test_a_chunk_is_quartered_and_stays_a_matrix(vocab_size, device, steps):
    job = score_job(vocab_size, device=device)
    found = []
    while (step := next_step(job)) is not None:
        job = job.changed({name: new for name, _, new in step.changes})
        found += [(old, new) for name, old, new in step.changes if name == HEAD_CHUNK]
    assert found == steps


def test_a_chunk_on_a_gpu_is_no_large_block():
    step = next_step(score_job(262_144, device="cuda"))
    assert step is not None
    assert step.changes[0][0] == "layer_by_layer"


@pytest.mark.parametrize("phase", ["prepare", "teacher", "student"])
def test_memory_that_was_kept_free_is_the_first_thing_to_go(phase):
    path = walk(phase, keep_memory=True, teacher_batch=2, student_batch=2, gradient_accumulation=1)
    assert path[0] == {"keep_memory": False}
    assert path[1:] == walk(phase, keep_memory=False, teacher_batch=2, student_batch=2, gradient_accumulation=1)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_steps_without_room_are_taken_at_once(name):
    job = a_job(name, teacher_batch=8, student_batch=8)
    path = walk(name, teacher_batch=8, student_batch=8)
    for wanted in range(len(path)):
        asked = []

        def has_room(smaller, wanted=wanted, asked=asked):
            asked.append(smaller)
            return len(asked) > wanted

        step = step_that_fits(job, has_room)
        together = {field: new for changes in path[: wanted + 1] for field, new in changes.items()}
        assert {field: new for field, _, new in step.changes} == together
        assert all(getattr(job, field) == old for field, old, _ in step.changes)
        assert asked[-1] == job.changed(together)


def test_the_smallest_is_tried_where_none_has_room():
    job = a_job("student", student_batch=8)
    step = step_that_fits(job, lambda _: False)
    assert next_step(job.changed({field: new for field, _, new in step.changes})) is None
    assert step_that_fits(job.changed({field: new for field, _, new in step.changes}), lambda _: False) is None
