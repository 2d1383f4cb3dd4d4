import pytest

from engine.errors import SettingsError
from engine.planner.budget import budget_for
from engine.planner.footprint import CUDA_CONTEXT
from engine.planner.live_runs import LiveRun
from engine.planner.phase_settings import Footprint
from engine.settings.config import RunConfig
from tests.engine.planner.machines import BIG_GPU, GIB, LAPTOP_GPU, computer

BOTH = computer(gpus=(LAPTOP_GPU, BIG_GPU))


def test_without_a_gpu_the_budget_is_a_share_of_the_free_memory() -> None:
    budget = budget_for(RunConfig(), computer(10 * GIB), [], "2.13.0")
    assert (budget.device, budget.memory_bytes, budget.ram_bytes) == ("cpu", int(8.5 * GIB), int(8.5 * GIB))
    assert "no NVIDIA driver" in budget.reasons["device"]
    assert "10.0 GiB" in budget.reasons["ram_budget"]


def test_the_gpu_with_most_free_memory_is_taken() -> None:
    budget = budget_for(RunConfig(), BOTH, [], "2.13.0+cu128")
    assert (budget.device, budget.memory_bytes) == ("cuda:1", int(0.85 * 20 * GIB))
    assert "RTX 3090" in budget.reasons["device"]


def test_a_torch_for_the_cpu_alone_takes_no_gpu_and_says_so() -> None:
    budget = budget_for(RunConfig(), BOTH, [], "2.13.0+cpu")
    assert budget.device == "cpu"
    assert "2.13.0+cpu" in budget.reasons["device"]


@pytest.mark.parametrize(("device", "expected"), [("cuda:0", "cuda:0"), ("cuda", "cuda:1"), ("cpu", "cpu")])
def test_a_device_that_was_named_is_taken(device: str, expected: str) -> None:
    assert budget_for(RunConfig(device=device), BOTH, [], "2.13.0+cpu").device == expected


@pytest.mark.parametrize(("device", "gpus"), [("cuda:7", (LAPTOP_GPU,)), ("cuda", ())])
def test_a_gpu_that_is_not_there_is_refused_with_what_is(device: str, gpus: tuple) -> None:
    with pytest.raises(SettingsError, match=r"RTX 3050|no GPU \(no NVIDIA driver"):
        budget_for(RunConfig(device=device), computer(gpus=gpus), [], "2.13.0")


def test_on_the_cpu_either_budget_holds_for_both() -> None:
    for given in ({"memory_budget": GIB}, {"ram_budget": GIB}, {"memory_budget": GIB, "ram_budget": 2 * GIB}):
        budget = budget_for(RunConfig(**given), computer(), [], "2.13.0")
        assert (budget.memory_bytes, budget.ram_bytes) == (GIB, GIB)


def test_what_other_runs_will_still_take_is_not_given_away() -> None:
    others = [LiveRun("notes", "cpu", 4 * GIB, 0), LiveRun("wiki", "cuda:0", GIB, 2 * GIB)]
    budget = budget_for(RunConfig(), computer(10 * GIB), others, "2.13.0")
    assert budget.memory_bytes == int(0.85 * 5 * GIB)
    assert "2 other runs" in budget.reasons["ram_budget"]
    on_gpu = budget_for(RunConfig(device="cuda:0"), BOTH, others, "2.13.0")
    assert on_gpu.memory_bytes == int(0.85 * 2 * GIB)


def test_a_gpu_has_to_hold_the_context_too() -> None:
    budget = budget_for(RunConfig(device="cuda:0", memory_budget=2 * GIB), BOTH, [], "2.13.0")
    parts = {"weights": 2 * GIB - CUDA_CONTEXT}
    assert budget.fits(Footprint(parts, GIB))
    assert not budget.fits(Footprint({"weights": parts["weights"] + 1}, GIB))
    assert not budget.fits(Footprint(parts, budget.ram_bytes + 1))
