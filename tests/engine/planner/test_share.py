from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from engine.model_files.spec import read_spec
from engine.planner import share
from engine.planner.measure import cautious_rates
from engine.planner.share import gemm_shares
from engine.run.report import speed_in_words
from engine.settings.config import RunConfig
from tests.engine.planner.machines import RATES
from tests.tiny import tiny_model

RATE = {"teacher": 1000.0, "student": 1000.0}


def shares(rates: Any = RATES, tokens: Any = RATE, student: Path | None = None, **values: Any) -> dict[str, Any]:
    folder = tiny_model("llama")
    settings = RunConfig.parse({"teacher": str(folder), "sequence_length": 32, "precision": "fp32", **values})
    return gemm_shares(settings, student or folder, tokens, rates)


def test_share_is_operations_a_second_over_the_measured_rate() -> None:
    spec = read_spec(str(tiny_model("llama")))
    products = 2 * (sum(spec.layer_parameters) + (spec.head_parameters or spec.embedding_parameters))
    forward = products + 2 * 32 * spec.num_layers * spec.num_heads * spec.head_dim
    expected = 1000 * forward / RATES.flops_per_second("fp32")
    assert shares()["teacher"] == pytest.approx(expected)
    assert shares()["student"] == pytest.approx(3 * expected)
    assert shares(gradient_checkpointing=True)["student"] == pytest.approx(4 * expected)
    half = shares(rates=replace(RATES, gemm_flops={**RATES.gemm_flops, "bf16_large": 7e9}), precision="bf16")
    assert half["teacher"] == pytest.approx(1000 * forward / 7e9)


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    assert shares(tokens={"teacher": None, "student": 0.0}) == {"teacher": None, "student": None}
    assert shares(rates=cautious_rates("cpu", 2)) == {"teacher": None, "student": None}
    assert shares(student=tmp_path / "gone")["student"] is None
    config = AutoConfig.for_model(
        "qwen2_moe", vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "experts")
    assert shares(student=tmp_path / "experts")["student"] is None  # how many experts a token uses is not known here


def test_phase_that_outran_the_measured_rate_is_not_told_and_the_rate_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "machine.json"
    settings = RunConfig.parse({"teacher": str(tiny_model("llama")), "sequence_length": 32, "precision": "fp32"})
    monkeypatch.setattr(share, "machine_rates", lambda **_: RATES)
    monkeypatch.setattr(share, "kept_at", lambda *_: kept)
    for tokens, is_kept in ((1000.0, True), (1e12, False)):
        kept.write_text("{}")
        rates = {"teacher": tokens, "student": None}
        assert (gemm_shares(settings, tiny_model("llama"), rates)["teacher"] is not None) is is_kept
        share.forget_slow_rates(settings, tiny_model("llama"), rates)
        assert kept.exists() is is_kept


def test_share_and_overhead_are_told_in_plain_words() -> None:
    assert speed_in_words({"gemm_share": 0.714, "overhead_seconds": 12.3}, "processor") == (
        "71% of what this processor can do; start, evaluations and checkpoints took 12 s"
    )
    assert speed_in_words({"gemm_share": 0.003}, "GPU") == "less than 1% of what this GPU can do"
    assert speed_in_words({"gemm_share": None, "overhead_seconds": None}, "processor") == ""
    assert speed_in_words({}, "GPU") == ""
