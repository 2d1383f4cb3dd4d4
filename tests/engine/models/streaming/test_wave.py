from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.models.streaming.hidden_store import HiddenStore
from engine.models.streaming.teacher import StreamedTeacher, StreamingMemory
from engine.models.streaming.wave import run_wave
from tests.engine.models.architectures import VOCAB_SIZE, tiny_architecture
from tests.engine.models.equality import assert_same_numbers

CPU = torch.device("cpu")


def micro_batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCAB_SIZE, shape, generator=generator) for shape in ((2, 9), (3, 5), (1, 20), (2, 9))]


class Skipping(nn.Module):
    """A core that leaves out its second layer for some inputs."""

    def __init__(self, calls: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity() for _ in range(3)])
        self.calls = calls

    def forward(self, input_ids: Tensor, **_: Any) -> tuple[Tensor]:
        hidden_states = input_ids.float()
        for index in self.calls:
            hidden_states = self.layers[index](hidden_states)
        return (hidden_states,)


@pytest.mark.parametrize("calls", [[0, 2], [0, 1, 1, 2], [0, 1], [1, 0, 2], []])
def test_a_model_that_does_not_call_each_layer_once_and_in_order_is_refused(calls: list[int]) -> None:
    core = Skipping(calls)
    with pytest.raises(ModelError, match="was expected"):
        run_wave(core, core.layers, [torch.ones((1, 2), dtype=torch.int64)], range(3), store=HiddenStore())
    assert core(torch.ones((1, 2)))[0].shape == (1, 2), "the layers must be usable again"


@pytest.mark.parametrize("limit", [0, 3000, 10**9])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "mamba", "bloom"])
def test_hidden_states_on_disk_are_the_hidden_states(name: str, limit: int, tmp_path: Path) -> None:
    folder = tiny_architecture(name)
    plain = StreamedTeacher(folder, dtype=torch.float32, device=CPU, check=False)
    memory = StreamingMemory(hidden_bytes=limit, spill_folder=tmp_path)
    spilling = StreamedTeacher(folder, dtype=torch.float32, device=CPU, check=False, memory=memory)
    for ours, theirs in zip(
        spilling.last_hidden_states(micro_batches()), plain.last_hidden_states(micro_batches()), strict=True
    ):
        assert_same_numbers(ours, theirs)
    assert (spilling.moved_bytes > 0) == (limit < 10**9)
    assert list(tmp_path.iterdir()) == [], "the file has no name, so that nothing stays behind after a crash"


def test_hidden_states_in_main_memory_are_the_hidden_states() -> None:
    folder = tiny_architecture("llama")
    plain = StreamedTeacher(folder, dtype=torch.float32, device=CPU, check=False)
    memory = StreamingMemory(hidden_bytes=0)
    moving = StreamedTeacher(folder, dtype=torch.float32, device=CPU, check=False, memory=memory)
    ours, theirs = moving.last_hidden_states(micro_batches()), plain.last_hidden_states(micro_batches())
    for one, other in zip(ours, theirs, strict=True):
        assert_same_numbers(one, other)
    assert moving.moved_bytes > 0


def test_a_wave_that_is_stopped_leaves_the_teacher_usable() -> None:
    teacher = StreamedTeacher(tiny_architecture("llama"), dtype=torch.float32, device=CPU, check=False)
    whole = teacher.last_hidden_states(micro_batches())

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 4 * 4
        if done == 6:
            raise Stop

    with pytest.raises(Stop):
        teacher.last_hidden_states(micro_batches(), on_progress=stop)
    again = teacher.last_hidden_states(micro_batches())
    for one, other in zip(again, whole, strict=True):
        assert_same_numbers(one, other)


def test_prefetching_may_be_turned_off_and_on_in_the_middle_of_a_wave() -> None:
    teacher = StreamedTeacher(tiny_architecture("gpt_neox"), dtype=torch.float32, device=CPU, check=False)
    whole = teacher.last_hidden_states(micro_batches())
    for pattern in (0b0110, 0b1001, 0b0101, 0b1011, 0b0000):

        def switch(done: int, total: int, pattern: int = pattern) -> None:
            teacher.prefetch = bool(pattern >> (done // 2) % 4 & 1)

        for one, other in zip(teacher.last_hidden_states(micro_batches(), on_progress=switch), whole, strict=True):
            assert_same_numbers(one, other)
