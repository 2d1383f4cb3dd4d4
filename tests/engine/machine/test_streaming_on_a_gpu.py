"""Places of a streamed teacher's tensors, on a pretend GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.machine.device import Device
from engine.models.checkpoint import Checkpoint
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher, StreamingMemory
from engine.teacher.sampling import draw_records
from tests.pretend_gpu import is_on_gpu, pretend_gpu
from tests.tiny import tiny_model

DEVICE = torch.device("cuda:0")
IDS = torch.arange(24).view(2, 12)


@contextmanager
def streamed(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[tuple[StreamedTeacher, Counter[str]]]:
    """A streamed teacher on the pretend GPU, and how often each tensor was read, from now on."""
    folder = tiny_model("gpt_neox", num_layers=3, hidden_size=16)
    reads: Counter[str] = Counter()
    own = Checkpoint.read

    def read(self: Checkpoint, name: str, out: Any, **keywords: Any) -> None:
        reads[name] += 1
        own(self, name, out, **keywords)

    monkeypatch.setattr(Checkpoint, "read", read)
    # Several slices of a head that is small here.
    monkeypatch.setattr("engine.models.slices._ROW_STEP", 64)
    small = replace(Device.of(str(DEVICE)), slice_bytes=4 * 64 * 16)
    monkeypatch.setattr("engine.models.slices.kind_of", lambda _: small)
    with pretend_gpu():
        teacher = StreamedTeacher(folder, dtype=torch.float32, device=DEVICE, memory=StreamingMemory(**settings))
        reads.clear()
        yield teacher, reads
        teacher.close()


HEAD = "embed_out.weight"


def chunks(teacher: StreamedTeacher, count: int = 3) -> list[torch.Tensor]:
    (states,) = teacher.last_hidden_states([IDS])
    return [teacher.logits(states[0]) for _ in range(count)]


def test_layers_lie_in_two_blocks_that_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with streamed(monkeypatch) as (teacher, _):
        places = set()
        for _ in range(2):
            for _, weights in teacher._reader.layers():
                assert all(is_on_gpu(tensor) for tensor in weights.values())
                places |= {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    assert len(places) == 2


def test_head_rows_that_find_no_room_on_the_gpu_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with streamed(monkeypatch, weight_bytes=0) as (teacher, reads):
        first, *others = chunks(teacher)
        slices = reads[HEAD]
        assert slices > 2
        assert all(torch.equal(first, other) for other in others)
        assert teacher._head_rows is not None
        assert 0 < teacher.saved_bytes <= teacher._head_rows.host_bytes
        chunks(teacher)  # another wave: what the slots held is read again, what main memory holds is not
        assert slices < reads[HEAD] < 2 * slices


def test_no_row_is_kept_beyond_the_main_memory_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with streamed(monkeypatch, weight_bytes=0, host_bytes=0) as (teacher, reads):
        monkeypatch.setattr(teacher._reader, "_slots", [])  # not even where layers lie
        (states,) = [torch.zeros(4, 16).to(DEVICE)]
        teacher.logits(states)
        once = reads[HEAD]
        teacher.logits(states)
        assert reads[HEAD] == 2 * once


def test_short_main_memory_takes_no_row_from_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with streamed(monkeypatch) as (teacher, reads):
        assert teacher.save_memory(True) == "", "all rows are on the GPU"
        chunks(teacher)
        once = reads[HEAD]
        chunks(teacher, 1)
        assert reads[HEAD] == 2 * once, "read once a wave"
    with streamed(monkeypatch, weight_bytes=0) as (teacher, reads):
        assert "output matrix" in teacher.save_memory(True)
        chunks(teacher, 1)
        assert teacher._head_rows is not None
        assert teacher._head_rows.host_bytes == 0


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_head_in_half_precision_is_summed_in_float32_where_it_can_be(kind: str) -> None:
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    with pretend_gpu(kind):
        device = torch.device(kind, 0)
        teacher = ResidentTeacher(tiny_model("gpt_neox", hidden_size=64), dtype=torch.bfloat16, device=device)
        logits = teacher.logits(states.to(device)).cpu()
        weight = teacher.model.get_output_embeddings().weight.cpu()
    exact = states.float() @ weight.float().T
    is_exact = torch.allclose(logits, exact, rtol=1e-6, atol=1e-6)
    has_wide_sums = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
    assert is_exact == (kind == "cuda" and has_wide_sums)


def test_a_draw_on_a_gpu_adds_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """``scatter_add_`` adds in any order there, when two of the largest ids lie in one block."""
    generator = torch.Generator().manual_seed(1)
    log_probs = (torch.randn(40, 1000, generator=generator) * 3).log_softmax(-1)
    log_probs[:, :5] += 2  # large ids beside each other
    log_probs = log_probs.log_softmax(-1)
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64)
    here = draw_records(log_probs, record_size=12, uniforms=uniforms)

    def in_any_order(*_: Any, **__: Any) -> None:
        raise AssertionError("scatter_add_ on a GPU")

    with pretend_gpu():
        monkeypatch.setattr(torch.Tensor, "scatter_add_", in_any_order)
        there = draw_records(log_probs.to(DEVICE), record_size=12, uniforms=uniforms.to(DEVICE))
        assert torch.equal(there.ids.cpu(), here.ids)
        assert torch.equal(there.tail_mass.cpu(), here.tail_mass)
