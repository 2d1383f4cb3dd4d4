"""Memory "monitoring" of the original printed, and acted on nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.channel.channel import Channel
from engine.channel.events import EventWriter, read_events
from engine.machine.memory_watch import MemoryWatch
from engine.models.streaming.teacher import StreamedTeacher
from engine.run import backoff
from tests.jobs import train_job
from tests.tiny import tiny_model


def test_a_teacher_reads_nothing_ahead_while_memory_is_short_and_does_again_when_there_is_room(tmp_path: Path) -> None:
    teacher = StreamedTeacher(tiny_model("llama"), dtype=torch.float32, device=torch.device("cpu"), check=False)
    free, seconds = iter([2**30, 1, 2**30]), iter(range(10))
    channel = Channel(EventWriter(tmp_path / "events.jsonl"))
    watch = MemoryWatch(2**30, lambda: next(free), lambda: next(seconds))
    with channel.saving_memory(teacher, watch=watch):
        reads_ahead = [teacher.prefetch]
        for _ in range(2):
            channel.safe_point()
            reads_ahead.append(teacher.prefetch)
    assert reads_ahead == [True, False, True]
    assert [event["code"] for event in read_events(tmp_path / "events.jsonl")] == ["memory-short", "memory-room"]


def test_a_phase_that_ran_out_of_memory_continues_with_less_and_the_same_effective_batch() -> None:
    job = train_job(student_batch=8, gradient_accumulation=2, optimizer="adamw", gradient_checkpointing=False)
    rows = set()
    for _ in range(3):
        step = backoff.next_step(job)
        assert step is not None
        job = job.changed({name: new for name, _, new in step.changes})
        rows.add(job.student_batch * job.gradient_accumulation)
    assert job.student_batch == 1
    assert rows == {16}
