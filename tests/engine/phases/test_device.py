from engine.phases.device import allocator_fraction
from engine.planner.footprint import CUDA_CONTEXT

GB = 10**9


def test_a_budget_leaves_the_allocator_what_the_cuda_context_does_not_take():
    assert allocator_fraction(2 * GB, 24 * GB) * 24 * GB == 2 * GB - CUDA_CONTEXT
    assert allocator_fraction(30 * GB, 24 * GB) == 1.0
    assert allocator_fraction(CUDA_CONTEXT // 2, 24 * GB) == 0.0
