"""The probe runs for real, in a child process, once for all tests (``measured_cache``); its results are kept."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.machine import hardware
from engine.planner import measure


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(measure.places, "cache", lambda: tmp_path / "tinydistill")
    return tmp_path / "tinydistill"


def test_rates_are_measured_once_and_kept(measured_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(measured_cache))
    kept = list(measured_cache.glob("*/machine-*.json"))
    monkeypatch.setattr(measure, "UNDISTURBED_SHARE", 0.0)  # on a busy machine too

    def not_again(*arguments: object, **keywords: object) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(subprocess, "run", not_again)
    found = measure.machine_rates(measure=True, threads=1)
    assert found.measured
    assert 1e8 < found.flops_per_second("fp32") < 1e16
    assert 0 < found.seconds_per_operation < 1e-2
    assert 0.2 < found.torch_seconds != measure.MachineRates.torch_seconds, "an import of torch, measured"
    assert 1e6 < found.disk_read_bytes_per_second < 1e13
    assert {
        f"{work}_{precision}_{size}"
        for work in ("forward", "learn")
        for precision in ("fp32", "bf16")
        for size in ("small", "large")
        if found.gemm_flops[f"{precision}_{size}"] >= found.gemm_flops[f"fp32_{size}"]
    } <= found.moving_seconds.keys()
    assert all(1e-13 < seconds < 1e-5 for seconds in found.moving_seconds.values())
    assert measure.kept_at("cpu", 1) in kept
    assert measure.machine_rates(measure=False, threads=1) == found
    assert len(kept) == len({1, hardware.usable_cores()})


@pytest.mark.parametrize(("share", "age", "measured"), [(0.3, 7200, 2), (0.3, 60, 1), (0.95, 7200, 1)])
def test_rates_of_a_busy_machine_are_used_for_an_hour(
    cache: Path, monkeypatch: pytest.MonkeyPatch, share: float, age: float, measured: int
) -> None:
    told = {"fp32_small": 1e9, "fp32_large": 1e9, "memory_bytes_per_second": 1e9, "seconds_per_operation": 1e-6}
    done = subprocess.CompletedProcess([], 0, json.dumps({**told, "processor_share": share}))
    probes = []
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: probes.append(1) or done)
    for measure_now in (True, False, True):
        assert measure.machine_rates(measure=measure_now, threads=1).flops_per_second("fp32") == 1e9
        then = time.time() - age
        os.utime(measure.kept_at("cpu", 1), (then, then))
    assert len(probes) == measured


def test_nothing_kept_gives_cautious_figures_that_say_so(cache: Path) -> None:
    found = measure.machine_rates(measure=False, threads=2)
    assert not found.measured
    assert found.flops_per_second("bf16") == found.flops_per_second("fp32")
    assert not cache.exists()


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"fp32_small": "x"}', json.dumps({"fp32_small": 1, "fp32_large": 1})]
)
def test_a_damaged_file_is_measured_again_or_not_believed(cache: Path, content: str) -> None:
    path = measure.kept_at("cpu", 3)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert not measure.machine_rates(measure=False, threads=3).measured


def test_a_probe_that_fails_leaves_cautious_figures(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert not measure.machine_rates(measure=True, threads=1).measured
    assert list(cache.glob("*")) == []


def test_rates_belong_to_a_device_and_a_number_of_threads(cache: Path) -> None:
    assert len({measure.kept_at("cpu", 1), measure.kept_at("cpu", 2), measure.kept_at("cuda:0", 1)}) == 3
    assert measure.machine_rates(device="cuda:0", threads=1).device == "cuda:0"
