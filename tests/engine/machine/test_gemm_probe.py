"""Measurements while other programs take the processor."""

import time
from pathlib import Path

import pytest
import torch

from engine.machine import gemm_probe
from engine.machine.gemm_probe import _Best, _Clock
from engine.machine.layer_probe import layer_work
from engine.machine.probed_layer import LENGTH, inner_size, products

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("is_disturbed", "wall", "processor", "expected"),
    [
        (False, 1.0, 0.87, 1.0),  # a quiet machine: the clock
        (False, 1.0, 0.2, 1.0),  # work of one thread is no reason to doubt the clock
        (True, 4.0, 1.74, 1.0),  # the threads had a quarter of the processors
        (True, 1.0, 1.9, 1.0),  # never more than the clock says
    ],
)
def test_time_that_others_took_is_left_out(is_disturbed: bool, wall: float, processor: float, expected: float) -> None:
    clock = _Clock(CPU, threads=2)
    clock.is_disturbed = is_disturbed
    assert clock.seconds(_Best(wall, processor)) == pytest.approx(expected)


def test_a_thread_that_waits_has_a_small_share_of_the_processor() -> None:
    clock = _Clock(CPU, threads=1)
    best = clock.best(lambda: time.sleep(0.03))
    assert best.processor < 0.02 < best.wall
    assert clock.share < 0.75


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_timed_layer_has_the_parameters_that_its_operations_are_counted_from(dtype: torch.dtype) -> None:
    hidden = 128
    work = layer_work(hidden, 2, dtype, CPU)
    work.forward()
    work.learn()
    weights = 4 * hidden**2 + 3 * hidden * inner_size(hidden)
    assert products(hidden) == 2 * weights + 2 * LENGTH * hidden


def test_a_layer_that_cannot_run_leaves_the_other_rates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small GPU may have no room for a layer, and some devices lack an operation."""

    def no_room(*arguments: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(gemm_probe, "layer_work", no_room)
    monkeypatch.setattr(gemm_probe, "_SHAPES", {"small": (8, 16, 16), "large": (8, 32, 32)})
    found = gemm_probe._measured(CPU, 1, tmp_path)
    assert {"fp32_small", "fp32_large", "memory_bytes_per_second", "seconds_per_operation"} <= found.keys()
    assert not [name for name in found if name.startswith("moving_")]
