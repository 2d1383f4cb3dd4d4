from __future__ import annotations

import pytest
import torch

from engine.machine.torch_device import host_bytes
from engine.models.transfer import to_device, to_host
from tests.pretend_gpu import pretend_gpu

TENSORS = [
    torch.arange(7, dtype=torch.int64),
    torch.tensor([True, False, True]),
    torch.arange(10, dtype=torch.float32).view(2, 5).T,  # not contiguous
    torch.tensor(2.5, dtype=torch.float64),
    torch.empty(0, 3),
    torch.arange(5, dtype=torch.uint8),
    torch.ones(3, dtype=torch.bfloat16),
]


def test_many_tensors_go_to_a_gpu_and_back_in_one_copy_each() -> None:
    with pretend_gpu() as gpu:
        there = to_device(TENSORS, torch.device("cuda:0"))
        assert gpu.syncs.total() == 0, gpu.told()
        assert {tensor.device for tensor in there} == {torch.device("cuda:0")}
        back = to_host(there)
        assert gpu.syncs.total() == 1, gpu.told()
        assert {tensor.device.type for tensor in back} == {"cpu"}
    for before, after in zip(TENSORS, back, strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


def test_on_the_cpu_nothing_is_copied() -> None:
    assert all(one is other for one, other in zip(to_device(TENSORS, torch.device("cpu")), TENSORS, strict=True))
    assert all(one is other for one, other in zip(to_host(TENSORS), TENSORS, strict=True))


def test_memory_that_cannot_be_pinned_is_taken_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.empty

    def refuses(*size: object, pin_memory: bool = False, **how: object) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return own(*size, **how)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "empty", refuses)
    assert host_bytes(100, pinned=True).shape == (100,)
