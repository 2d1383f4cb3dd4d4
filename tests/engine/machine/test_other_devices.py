"""GPUs that no library lists: torch is asked, and what it finds is planned for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SettingsError
from engine.machine import gpu_check, gpu_probe
from engine.machine.gpu_check import checked
from engine.planner.budget import budget_for
from engine.planner.phase_settings import Footprint
from engine.settings.config import RunConfig
from tests.engine.planner.machines import GIB, computer
from tests.pretend_gpu import pretend_gpu


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.places, "cache", lambda: tmp_path / "tinydistill")
    monkeypatch.setattr(gpu_check, "_others_seen", {})
    monkeypatch.setattr(gpu_check, "find_gpus", lambda: ((), "no NVIDIA driver is loaded"))


def machine_with(monkeypatch: pytest.MonkeyPatch, kind: str) -> Any:
    """A machine whose torch was built for this kind, and whose probe answers as it does on the pretend GPU."""
    if kind == "mps":
        monkeypatch.setattr(gpu_check.sys, "platform", "darwin")
        monkeypatch.setattr(gpu_check.platform, "machine", lambda: "arm64")
    else:
        monkeypatch.setattr(gpu_check, "torch_version", lambda: f"2.13.0+{'rocm6.4' if kind == 'cuda' else kind}")

    def probe(_: Any, *words: str) -> tuple[object, str]:
        assert words == ("--all",)
        with pretend_gpu(kind):
            return gpu_probe.every_answer(), ""

    monkeypatch.setattr(gpu_check, "_run_probe", probe)
    return computer(16 * GIB)


@pytest.mark.parametrize(("kind", "device"), [("cuda", "cuda:0"), ("xpu", "xpu:0"), ("mps", "mps")])
def test_a_gpu_that_torch_finds_is_planned_for(monkeypatch: pytest.MonkeyPatch, kind: str, device: str) -> None:
    machine = checked(machine_with(monkeypatch, kind))
    (gpu,) = machine.gpus
    assert (gpu.device, gpu.unusable, gpu.good_formats) == (device, "", ("bf16", "fp16"))
    for wished in (None, kind, device):
        budget = budget_for(RunConfig(device=wished), machine, [], "2.13.0")
        assert budget.device == device
        assert 0 < budget.memory_bytes <= gpu.total_bytes
    assert gpu_check.gpu_of(device) is not None
    other = "xpu" if kind != "xpu" else "cuda"
    with pytest.raises(SettingsError, match=f"there is {device}"):
        budget_for(RunConfig(device=other), machine, [], "2.13.0")


def test_no_more_than_is_free_in_main_memory_is_free_on_a_device_that_shares_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = checked(replace(machine_with(monkeypatch, "mps"), available_bytes=2 * GIB))
    assert machine.gpus[0].free_bytes == 2 * GIB
    budget = budget_for(RunConfig(), machine, [], "2.13.0")
    each = Footprint({"weights": budget.memory_bytes // 2}, ram_bytes=budget.memory_bytes // 2)
    assert not budget.fits(each), "half on the device and half beside it, with a context, are more than there is"


def test_a_torch_that_finds_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_with(monkeypatch, "xpu")
    monkeypatch.setattr(gpu_check, "_run_probe", lambda *_: ([], ""))
    budget = budget_for(RunConfig(), checked(machine), [], "2.13.0+xpu")
    assert budget.device == "cpu"
    assert "2.13.0+xpu finds none" in budget.reasons["device"]


@pytest.mark.parametrize("answer", [None, {}, [{}], [1], "x"])
def test_an_answer_that_cannot_be_read_is_no_gpu(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    machine = machine_with(monkeypatch, "xpu")
    monkeypatch.setattr(gpu_check, "_run_probe", lambda *_: (answer, "it died"))
    assert checked(machine).gpus == ()
