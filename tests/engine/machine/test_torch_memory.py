"""Memory of ``import torch`` in this installation: measured, or guessed from what its build is for."""

from __future__ import annotations

import json
import sys

import pytest

from engine.disk import places
from engine.machine import torch_memory
from engine.machine.kept_fact import KeptFact
from engine.machine.torch_memory import FITTED_BYTES, MIB, more_bytes
from engine.planner.preparing import prepare_bytes

_CPU = "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\nxpu: Optional[str] = None\n"
_CUDA_OF_TODAY = _CPU.replace("cuda: Optional[str] = None", "cuda: Optional[str] = '13.0'")


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch_memory, "_version_file", lambda: _CPU)
    return monkeypatch


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("", 0),  # torch is not installed, or has no such file
        (_CPU, 0),
        (_CUDA_OF_TODAY, 132 * MIB),
        ("cuda: Optional[str] = '12.4'\nhip: Optional[str] = None\n", 132 * MIB),
        ("cuda = '11.8'\nhip = None\n", 132 * MIB),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.2.41133'\n", 132 * MIB),
        ("cuda: Optional[str] = None\nxpu: Optional[str] = '20250201'\n", 132 * MIB),
    ],
)
def test_before_a_measurement_the_builds_own_words_decide(words: str, more: int, version: pytest.MonkeyPatch) -> None:
    version.setattr(torch_memory, "_version_file", lambda: words)
    assert more_bytes() == more


def test_a_measurement_is_kept_for_its_installation(version: pytest.MonkeyPatch) -> None:
    torch_memory.keep(FITTED_BYTES + 66 * MIB + 1)
    assert more_bytes() == 68 * MIB  # two imports differ by a little, and the plan does not
    version.setattr(torch_memory, "_MEASURED", KeptFact("import_bytes"))  # another process
    assert more_bytes() == 68 * MIB
    torch_memory.keep(FITTED_BYTES - 20 * MIB)
    assert more_bytes() == -20 * MIB
    version.setattr(torch_memory, "_version_file", lambda: _CUDA_OF_TODAY)  # upgraded
    assert more_bytes() == 132 * MIB


@pytest.mark.parametrize("words", ["", "[]", "{}", '{"import_bytes": null}', '{"import_bytes": "many"}'])
def test_a_damaged_measurement_is_none(words: str, version: pytest.MonkeyPatch) -> None:
    torch_memory.keep(FITTED_BYTES + 100 * MIB)
    (kept,) = places.cache().glob("torch-*.json")
    kept.write_text(words)
    version.setattr(torch_memory, "_MEASURED", KeptFact("import_bytes"))
    assert more_bytes() == 0


def test_the_prediction_of_a_phase_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = prepare_bytes(1000, "text.txt")
    monkeypatch.setattr(torch_memory, "more_bytes", lambda: 132 * MIB)
    assert prepare_bytes(1000, "text.txt") == before + 132 * MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory as Linux counts it")
def test_the_probe_measures_this_installation(machine_is_measured: None) -> None:
    (kept,) = places.cache().glob("torch-*.json")
    assert 80 * MIB < json.loads(kept.read_text())["import_bytes"] < 800 * MIB
