"""The planner lets ranks divide the student where a whole one in each does not fit, and says what ranks bring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SettingsError
from engine.planner import Plan, plan
from engine.planner.disk import run_bytes
from engine.planner.footprint import student_footprint
from engine.planner.phase_settings import StudentSetting
from engine.planner.timing import step_seconds
from engine.settings.config import RunConfig
from tests.engine.planner.machines import MIB, RATES, computer, pythia
from tests.tiny import tiny_model

PYTHIA_160M = pythia(768, 12, 12)
ONE_WAY = {
    "optimizer": "adamw", "cpu_offload": False, "lora_rank": 0, "gradient_checkpointing": False, "student_batch": 1,
    "gradient_accumulation": 4,
}  # fmt: skip


def planned(folder: Path, architecture: str = "llama", **values: Any) -> Plan:
    file = folder / "notes.txt"
    file.write_text("A small model learns from what a large model would have said. " * 5_000)
    asked = {
        "teacher": str(tiny_model(architecture)),
        "student": str(tiny_model(architecture, num_layers=2)),
        "data": str(file),
    }
    config = RunConfig.parse({**asked, "device": "cpu", "precision": "fp32", "keep_memory": False, **values})
    return plan(config, hardware=computer(), machine=RATES, strict=False)


def choice(found: Plan, name: str) -> tuple[Any, str]:
    return next((c.value, c.reason) for c in found.choices if c.field == name)


@pytest.mark.parametrize("ranks", [2, 4])
def test_each_rank_of_a_divided_student_needs_less_than_one_with_all_of_it(ranks: int) -> None:
    settings = [
        StudentSetting(4, 4, 128, "fp32", checkpointing=False, optimizer="adamw", ranks=ranks, sharded=sharded)
        for sharded in (False, True)
    ]
    whole, divided = (student_footprint(PYTHIA_160M, setting) for setting in settings)
    assert divided.peak_bytes < whole.peak_bytes
    assert divided.parts["optimizer"] == pytest.approx(8 * PYTHIA_160M.parameters / ranks, rel=0.01)


def test_the_student_is_divided_where_a_whole_one_does_not_fit(tmp_path: Path) -> None:
    student = tiny_model("llama", num_layers=24, hidden_size=512)
    values = {"student": str(student), "processes": 2, "sequence_length": 32, **ONE_WAY}
    roomy = planned(tmp_path, **values, memory_budget="8GB")
    assert choice(roomy, "student_sharded")[0] is False
    assert "a whole student fits in each process" in choice(roomy, "student_sharded")[1]
    whole = roomy.predicted["student"].peak_bytes
    tight = planned(tmp_path, **values, memory_budget=f"{int(0.9 * whole) // MIB}MiB")
    assert tight.misfit is None
    sharded, reason = choice(tight, "student_sharded")
    assert sharded is True
    assert "a whole student in each needs" in reason
    assert tight.predicted["student"].peak_bytes < whole
    assert tight.disk_bytes > roomy.disk_bytes, "each rank loads the student into a file"
    refused = planned(tmp_path, **values, memory_budget=f"{int(0.9 * whole) // MIB}MiB", student_sharded=False)
    assert refused.misfit is not None
    assert "--student_sharded" in refused.misfit.todo


def test_one_process_and_an_adapter_divide_nothing(tmp_path: Path) -> None:
    assert choice(planned(tmp_path), "student_sharded") == (False, "only for several processes")
    found = planned(tmp_path, processes=2, lora_rank=4)
    said = "only where all weights are trained: each process has the whole adapter"
    assert choice(found, "student_sharded") == (False, said)


@pytest.mark.parametrize("asked", [{"lora_rank": 4}, {"student_quantization": "nf4"}, {"student_layer_by_layer": True}])
def test_an_adapter_is_not_divided(tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="--student_sharded"):
        planned(tmp_path, processes=2, student_sharded=True, **asked)
    assert choice(planned(tmp_path, student_sharded=True, **asked), "lora_rank")[0] > 0, "one process divides nothing"


def test_where_the_student_has_to_be_divided_no_adapter_is_proposed(tmp_path: Path) -> None:
    student = str(tiny_model("llama", num_layers=24, hidden_size=512))
    values = {"student": student, "processes": 2, "sequence_length": 32, "memory_budget": "1200MB"}
    assert choice(planned(tmp_path, **values), "lora_rank")[0] > 0
    found = planned(tmp_path, **values, student_sharded=True)
    assert choice(found, "lora_rank")[0] == 0
    assert choice(found, "student_sharded")[0] is True


def test_the_plan_of_an_adapter_by_ranks_tells_memory_and_reads_of_each(tmp_path: Path) -> None:
    asked = {"lora_rank": 4, "student_layer_by_layer": True, "student_batch": 2, "gradient_accumulation": 2}
    one, two = (planned(tmp_path, processes=count, **asked) for count in (1, 2))
    assert "each reads the student's layers twice a step" in choice(two, "processes")[1]
    of_all, alone = two.predicted["student"].peak_bytes, one.predicted["student"].peak_bytes
    assert alone < of_all <= 2 * alone
    in_memory = planned(tmp_path, processes=2, **{**asked, "student_layer_by_layer": False})
    assert "twice a step" not in choice(in_memory, "processes")[1]


def test_a_rank_of_an_adapter_keeps_activations_of_its_rows_alone() -> None:
    one = StudentSetting(4, 4, 512, "fp32", True, "adamw", rank=8, layer_by_layer=True)
    parts = [student_footprint(PYTHIA_160M, replace(one, ranks=ranks)).parts for ranks in (1, 4)]
    assert parts[1]["weights"] == parts[0]["weights"]
    assert parts[1]["activations"] < 0.6 * parts[0]["activations"]


def test_ranks_share_the_disk_that_they_stream_from() -> None:
    base = StudentSetting(1, 4, 128, "fp32", True, "adamw", rank=8, layer_by_layer=True)
    slow = replace(RATES, disk_read_bytes_per_second=1e6)
    reading = step_seconds(PYTHIA_160M, base, slow)
    assert reading > 50 * step_seconds(PYTHIA_160M, base, RATES)
    shared = slow.shared(2, 2, slow.memory_bytes_per_second)
    assert step_seconds(PYTHIA_160M, replace(base, ranks=2), shared) == pytest.approx(2 * reading, rel=0.1)


def test_ranks_keep_tensors_in_files_of_their_own() -> None:
    """And those that divide a student share them."""
    setting = StudentSetting(1, 4, 128, "fp32", checkpointing=True, optimizer="adamw", cpu_offload=True)

    def disk_bytes(**values: Any) -> int:
        return run_bytes(
            tokens=0, record_size=12, vocab_size=100, student=PYTHIA_160M, setting=replace(setting, **values),
            keep_checkpoints=2, is_cut=False,
        )  # fmt: skip

    for rank in (0, 8):
        alone = disk_bytes(rank=rank)
        scratch = alone - disk_bytes(rank=rank, cpu_offload=False)
        assert scratch >= 4 * PYTHIA_160M.parameters
        assert disk_bytes(rank=rank, ranks=3) == alone + 2 * scratch


def test_a_student_whose_head_does_more_is_not_divided(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as told:
        planned(tmp_path, "gemma2", processes=2, student_sharded=True)
    assert "only a plain head is divided" in told.value.what
    value, reason = choice(planned(tmp_path, "gemma2", processes=2), "student_sharded")
    assert value is False
    assert "the head of" in reason


def test_the_plan_of_several_processes_tells_the_time_of_one(tmp_path: Path) -> None:
    one, two, eight = (planned(tmp_path, processes=count) for count in (1, 2, 8))
    assert "With one process: teacher" in choice(two, "processes")[1]
    assert "With one process" not in choice(one, "processes")[1]
    # There are four cores: eight processes take turns on them, and have no more of them than four.
    four = planned(tmp_path, processes=4)
    assert eight.predicted["teacher"].seconds >= 0.99 * four.predicted["teacher"].seconds
