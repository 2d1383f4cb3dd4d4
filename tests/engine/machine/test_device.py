"""Names of devices, and what is said of each kind."""

from __future__ import annotations

import pytest

from engine.machine.device import CPU, Device, is_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:3", "cuda:3"), ("xpu", "xpu:0"), ("mps", "mps"), ("mps:0", "mps")],
)
def test_a_device_has_one_name(name: str, expected: str) -> None:
    assert is_name(name)
    assert str(Device.of(name)) == expected
    assert Device.of(expected) == Device.of(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "mps:1", "CUDA", "cuda:0 "])
def test_other_texts_name_no_device(name: str) -> None:
    assert not is_name(name)


def test_a_kind_that_is_not_known_is_taken_for_one_that_can_do_least() -> None:
    found = Device.of("npu:0")
    assert not (found.is_host)
    assert not (found.has_float64)
    assert not (found.can_pin)
    assert not (found.has_streams)
    assert not (found.has_sparse)


def test_only_cards_have_a_memory_of_their_own() -> None:
    shared = {name: Device.of(name).shares_main_memory for name in ("cpu", "mps", "cuda:0", "xpu:0")}
    assert shared == {"cpu": True, "mps": True, "cuda:0": False, "xpu:0": False}
    assert [Device.of(name).is_host for name in ("cpu", "mps")] == [True, False]
    assert Device.of("cpu") == CPU
