"""torch is asked whether it can use a GPU, before anything is planned for one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import SettingsError
from engine.machine import gpu_check, gpu_probe
from engine.machine.gpu_check import GpuAnswer, checked
from engine.machine.gpu_probe import has_kernels
from engine.machine.hardware import Gpu
from engine.planner.budget import budget_for
from engine.planner.footprint import CUDA_CONTEXT, context_bytes_on
from engine.settings.config import RunConfig
from tests.engine.planner.machines import BIG_GPU, GIB, LAPTOP_GPU, MIB, computer
from tests.pretend_gpu import pretend_gpu

OLD = Gpu(0, "GTX 1060", 6 * GIB, 5 * GIB, "580.65", "6.1", uuid="GPU-old")
NEW = Gpu(1, "RTX 3050", 4 * GIB, 3 * GIB, "580.65", "8.6", uuid="GPU-new")
TODAY = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu_check.places, "cache", lambda: tmp_path / "tinydistill")
    monkeypatch.setattr(gpu_check, "torch_version", lambda: "2.13.0+cu130")
    gpu_check._asked_once.cache_clear()
    return tmp_path / "tinydistill"


def answered(monkeypatch: pytest.MonkeyPatch, answers: dict[str, GpuAnswer]) -> list[str]:
    """Probes that answer so; and the list of those that were asked."""
    asked: list[str] = []
    monkeypatch.setattr(gpu_check, "_probe", lambda uuid: asked.append(uuid) or answers[uuid])
    return asked


@pytest.mark.parametrize(
    ("capability", "built_for", "expected"),
    [
        ((6, 1), TODAY, False),  # Pascal: GTX 10xx
        ((7, 0), TODAY, False),  # Volta: Titan V
        ((5, 2), TODAY, False),  # Maxwell: GTX 9xx
        ((7, 5), TODAY, True),
        ((8, 6), TODAY, True),
        ((8, 9), TODAY, True),  # machine code of an earlier minor number
        ((9, 0), TODAY, True),
        ((12, 1), TODAY, True),
        ((13, 0), TODAY, True),  # newer than the build: from the intermediate code
        ((6, 1), ["sm_50", "sm_60", "sm_70"], True),
        ((7, 5), ["sm_80", "sm_90"], False),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((8, 6), ["compute_80"], True),
        ((7, 5), ["compute_80"], False),
        ((8, 6), ["something"], False),
    ],
)
def test_kernels_are_there_for_the_gpus_that_a_build_names(
    capability: tuple[int, int], built_for: list[str], expected: bool
) -> None:
    assert has_kernels(capability, built_for) is expected


def test_torch_without_cuda_says_so_in_a_real_probe(cache: Path) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this build of torch has CUDA")
    found = checked(computer(gpus=(NEW,))).gpus[0]
    assert "built without CUDA" in found.unusable
    assert json.loads(gpu_check.kept_at(NEW).read_text())["why_not"] == found.unusable


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"capability": (6, 1)}, "no kernels for its compute capability 6.1"),
        ({"available": False}, "The NVIDIA driver on your system is too old"),
        ({"memory": (0, 0)}, "does not tell how much memory"),
        ({"product": "wrong"}, "multiplies matrices wrongly"),
        ({"product": RuntimeError("CUDA error: no kernel image is available")}, "no kernel image"),
        ({"product": RuntimeError("CUDA error: out of memory")}, "other programs fill its memory"),
    ],
)
def test_the_reason_is_the_true_one(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str) -> None:
    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update.")

    own = torch.Tensor.__matmul__

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if not left.is_cuda:
            return own(left, right)
        if isinstance(changes["product"], Exception):
            raise changes["product"]
        return own(left, right) + 1

    with pretend_gpu():
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: TODAY)
        monkeypatch.setattr(torch.cuda, "init", too_old)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: changes.get("available", True))
        if "capability" in changes:
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: changes["capability"])
        if "memory" in changes:
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: changes["memory"])
        if "product" in changes:
            monkeypatch.setattr(torch.Tensor, "__matmul__", product)
        found = gpu_probe.answer()
        monkeypatch.undo()
    assert expected in found["why_not"]
    assert bool(found["why_not"]) == bool(expected)
    if not expected:
        assert found["good_formats"] == ["bf16", "fp16"]
        assert found["total_bytes"] == 4 * GIB


def test_a_gpu_that_torch_cannot_use_is_not_planned_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, {"GPU-old": GpuAnswer("torch has no kernels for it"), "GPU-new": GpuAnswer("")})
    both = checked(computer(gpus=(OLD, NEW)))
    assert budget_for(RunConfig(), both, [], "2.13.0+cu130").device == "cuda:1"
    assert budget_for(RunConfig(device="cuda"), both, [], "2.13.0+cu130").device == "cuda:1"
    alone = checked(computer(gpus=(OLD,)))
    budget = budget_for(RunConfig(), alone, [], "2.13.0+cu130")
    assert budget.device == "cpu"
    assert budget.reasons["device"] == "the GTX 1060 cannot be used: torch has no kernels for it"


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_was_named_and_cannot_be_used_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    answered(monkeypatch, {"GPU-old": GpuAnswer("torch has no kernels for it")})
    with pytest.raises(SettingsError, match="GTX 1060 cannot be used: torch has no kernels for it; use cpu"):
        budget_for(RunConfig(device=device), checked(computer(gpus=(OLD,))), [], "2.13.0+cu130")


def test_a_build_for_the_cpu_alone_is_not_even_asked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "torch_version", lambda: "2.13.0+cpu")
    asked = answered(monkeypatch, {})
    found = checked(computer(gpus=(NEW,))).gpus[0]
    assert "2.13.0+cpu" in found.unusable
    assert asked == []


def test_an_answer_is_kept_for_the_gpu_the_driver_and_the_build(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answered(monkeypatch, {"GPU-new": GpuAnswer("", 4 * GIB, 300 * MIB, ("fp16",))})
    found = checked(computer(gpus=(NEW,)))
    gpu_check._asked_once.cache_clear()  # another process
    assert checked(computer(gpus=(NEW,))) == found
    assert asked == ["GPU-new"]
    assert found.gpus[0].good_formats == ("fp16",)
    others = [replace(NEW, driver="590.1"), replace(NEW, name="RTX 4050")]
    assert len({gpu_check.kept_at(gpu) for gpu in (NEW, *others)}) == 3
    before = gpu_check.kept_at(NEW)
    monkeypatch.setattr(gpu_check, "torch_version", lambda: "2.14.0+cu130")
    assert gpu_check.kept_at(NEW) != before


def test_an_answer_that_will_not_last_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, {"GPU-new": GpuAnswer("other programs fill its memory", lasting=False)})
    assert checked(computer(gpus=(NEW,))).gpus[0].unusable
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", "null"])
def test_a_damaged_answer_is_asked_for_again(cache: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    asked = answered(monkeypatch, {"GPU-new": GpuAnswer("")})
    cache.mkdir()
    gpu_check.kept_at(NEW).write_text(content)
    assert not checked(computer(gpus=(NEW,))).gpus[0].unusable
    assert asked == ["GPU-new"]


def test_a_probe_that_dies_is_told_with_its_last_words(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "torch ended when it was asked" in checked(computer(gpus=(NEW,))).gpus[0].unusable

    def late(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("x", 1)

    gpu_check._asked_once.cache_clear()
    monkeypatch.setattr(subprocess, "run", late)
    assert "did not answer" in checked(computer(gpus=(NEW,))).gpus[0].unusable


def test_a_part_of_a_gpu_has_the_memory_that_torch_sees(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = replace(BIG_GPU, uuid="MIG-1")
    answered(monkeypatch, {"MIG-1": GpuAnswer("", total_bytes=10 * GIB)})
    found = checked(computer(gpus=(whole,))).gpus[0]
    assert (found.total_bytes, found.free_bytes) == (10 * GIB, 10 * GIB)


def test_gpus_of_another_machine_are_taken_as_they_are(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answered(monkeypatch, {})
    machine = computer(gpus=(LAPTOP_GPU, BIG_GPU))
    assert checked(machine) == machine
    assert asked == []


def test_a_context_counts_as_it_was_measured() -> None:
    assert context_bytes_on(None) == context_bytes_on(NEW) == CUDA_CONTEXT
    small, large = (context_bytes_on(replace(NEW, context_bytes=size)) for size in (200 * MIB, 700 * MIB))
    assert small < CUDA_CONTEXT < large
    assert large - small == 500 * MIB
