import pytest
import torch

from engine.phases.device import allocator_fraction, as_seen_here
from engine.planner.footprint import CUDA_CONTEXT

GB = 10**9


def test_a_budget_leaves_the_allocator_what_the_cuda_context_does_not_take():
    assert allocator_fraction(2 * GB, 24 * GB, CUDA_CONTEXT) * 24 * GB == pytest.approx(2 * GB - CUDA_CONTEXT)
    assert allocator_fraction(30 * GB, 24 * GB, CUDA_CONTEXT) == 1.0
    assert allocator_fraction(CUDA_CONTEXT // 2, 24 * GB, CUDA_CONTEXT) == 0.0


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cuda:1", "GPU-3f2a", "cuda:0"),
        ("cuda:1", "MIG-77", "cuda:0"),
        ("cuda:1", "GPU-3f2a,GPU-91bc", "cuda:1"),
        ("cuda:1", "1", "cuda:1"),
        ("cuda:1", "", "cuda:1"),
        ("cpu", "GPU-3f2a", "cpu"),
    ],
)
def test_the_only_gpu_that_is_seen_is_the_first(monkeypatch, device, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert as_seen_here(device) == torch.device(expected)
