from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.channel.events import EventWriter, read_events
from engine.channel.pressure import Relief
from engine.machine.memory_watch import MemoryWatch
from engine.models.streaming.teacher import StreamedTeacher, StreamingMemory
from tests.tiny import tiny_model

MIB = 2**20


class Machine:
    """1,600 MiB of memory, of which some are free; every question comes a second after the one before."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.seconds = 0.0

    def watch(self) -> MemoryWatch:
        return MemoryWatch(1600 * MIB, lambda: self.free_bytes, self.clock)

    def clock(self) -> float:
        self.seconds += 1
        return self.seconds


class Worker:
    growth_bytes = 0
    saved_bytes = 200 * MIB

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def save_memory(self, on: bool) -> str:
        self.asked.append(on)
        return "one thing is left out"


@pytest.fixture
def events(tmp_path: Path) -> EventWriter:
    return EventWriter(tmp_path / "events.jsonl")


def said(tmp_path: Path) -> list[str]:
    return [str(event["code"]) for event in read_events(tmp_path / "events.jsonl")]


def test_memory_that_runs_short_is_acted_on_once_and_given_back_when_there_is_room(
    events: EventWriter, tmp_path: Path
) -> None:
    machine, worker = Machine(150 * MIB), Worker()
    relief = Relief(worker, events, watch=machine.watch())
    # The reserve is a sixteenth, 100 MiB; going back takes 200 MiB, and twice the reserve stays free.
    for free, short in ((150, False), (90, True), (80, True), (250, True), (390, True), (400, False), (101, False)):
        machine.free_bytes = free * MIB
        relief.look()
        assert relief.is_short == short, free
    assert worker.asked == [True, False]
    assert said(tmp_path) == ["memory-short", "memory-room"]
    warning = next(iter(read_events(tmp_path / "events.jsonl")))
    assert warning["message"] == "Memory is short: 90.0 MiB are free. One thing is left out."


def test_what_will_be_taken_next_must_fit_above_the_reserve() -> None:
    machine = Machine(350 * MIB)
    assert not machine.watch().look(growth_bytes=200 * MIB)
    assert machine.watch().look(growth_bytes=300 * MIB)


def test_a_large_machine_is_short_at_a_quarter_of_a_gibibyte_and_is_not_asked_all_the_time() -> None:
    asked = []
    watch = MemoryWatch(2**40, lambda: asked.append(1) or 255 * MIB, lambda: 5.0)  # type: ignore[func-returns-value]
    assert watch.look()
    assert not watch.look()
    assert watch.is_short
    assert len(asked) == 1


def test_a_streamed_teacher_saves_memory_in_the_middle_of_a_wave_and_says_the_same(tmp_path: Path) -> None:
    folder, cpu = tiny_model("llama", num_layers=6), torch.device("cpu")
    ids = [torch.randint(2, 300, (2, 16), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    plain = StreamedTeacher(folder, dtype=torch.float32, device=cpu, check=False)
    expected = plain.last_hidden_states(ids)
    logits = plain.logits(expected[0].flatten(0, 1)).clone()

    memory = StreamingMemory(spill_folder=tmp_path)
    teacher = StreamedTeacher(folder, dtype=torch.float32, device=cpu, memory=memory, check=False)
    assert teacher.growth_bytes > 0, "nothing is read yet: both slots are still to come"
    assert teacher.save_memory(True) == "layers are no longer read ahead, and hidden states wait on disk"
    assert not teacher.prefetch
    assert teacher.saved_bytes > 0
    teacher.save_memory(False)
    assert teacher.prefetch

    def switch(done: int, total: int) -> None:
        teacher.save_memory(total // 4 <= done < total // 2)

    found = teacher.last_hidden_states(ids, on_progress=switch)
    assert teacher.moved_bytes > 0
    assert teacher.growth_bytes == 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    teacher.save_memory(True)
    assert torch.equal(teacher.logits(found[0].flatten(0, 1)), logits)
