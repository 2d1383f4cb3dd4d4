from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import SettingsError
from engine.model_files.spec import read_spec
from engine.models.load import load_causal_lm
from engine.phases.prepare import check_linears
from engine.planner import plan
from engine.planner.adapters import adapter_shape, check_adapter, default_rank, targets_of
from engine.planner.footprint import student_footprint
from engine.planner.models import describe
from engine.planner.phase_settings import StudentSetting
from engine.planner.shape import LinearShape, ModelShape, shape_of
from engine.settings.config import RunConfig
from engine.student.adapter import LowRankAdapter
from tests.engine.model_files.test_quantised import LAYOUTS, quantised
from tests.engine.models.architectures import tiny_architecture
from tests.engine.planner.machines import RATES, computer
from tests.jobs import prepare_job
from tests.tiny import tiny_model

GIB = 2**30
WIDE = 3072
INNER = 8192
# Llama-3.2-3B: 28 layers, a tied head of 128,256 ids.
LARGE = ModelShape(
    name="large",
    hidden_size=WIDE,
    intermediate_size=INNER,
    num_heads=24,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128_256,
    layer_parameters=(100_669_440,) * 28,
    embedding=128_256 * WIDE,
    head=0,
    other=WIDE,
    stored_bytes=2,
    max_positions=131_072,
    model_type="llama",
    stored_precision="bf16",
    linears=(
        LinearShape("self_attn.q_proj", WIDE, WIDE),
        LinearShape("self_attn.k_proj", 1024, WIDE),
        LinearShape("self_attn.v_proj", 1024, WIDE),
        LinearShape("self_attn.o_proj", WIDE, WIDE),
        LinearShape("mlp.gate_proj", INNER, WIDE),
        LinearShape("mlp.up_proj", INNER, WIDE),
        LinearShape("mlp.down_proj", WIDE, INNER),
    ),
)
SETTING = StudentSetting(1, 1, 512, "bf16", checkpointing=True, optimizer="adamw-8bit", rank=64)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "notes.txt"
    file.write_text("A small model learns from what a large model would have said. " * 5_000)
    return file


def planned(text: Path, **values: Any) -> Any:
    asked = {"teacher": str(tiny_model("llama")), "student": str(tiny_model("llama", num_layers=2)), "data": str(text)}
    return plan(RunConfig.parse({**asked, **values}), hardware=computer(), machine=RATES, strict=False)


def value(found: Any, name: str) -> Any:
    return next(choice.value for choice in found.choices if choice.field == name)


def test_an_adapter_is_not_taken_where_all_weights_can_be_trained(text: Path) -> None:
    assert value(planned(text), "lora_rank") == 0
    assert value(planned(text), "student_layer_by_layer") is False


@pytest.mark.parametrize(
    "asked",
    [
        {"lora_alpha": 8.0},
        {"lora_targets": "q_proj"},
        {"student_quantization": "nf4"},
        {"student_layer_by_layer": True},
    ],
)
def test_a_setting_that_only_an_adapter_has_asks_for_one(text: Path, asked: dict[str, Any]) -> None:
    found = planned(text, **asked)
    smallest = 32 if "lora_targets" in asked else 16  # sides of q_proj, and of k_proj
    assert value(found, "lora_rank") == smallest, "the rank is at most the smallest side of a linear layer"
    for name, wanted in asked.items():
        assert value(found, name) == wanted
    with pytest.raises(SettingsError) as told:
        planned(text, lora_rank=0, **asked)
    assert next(iter(asked)) in told.value.paragraph()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"lora_rank": 17}, "at most 16"),
        ({"lora_targets": "q_proj, query_key_value"}, "no linear layer query_key_value in its decoder; it has"),
        ({"lora_targets": "embed_tokens"}, "embed_tokens is the embedding of"),
        ({"lora_targets": "q_proj,lm_head"}, "lm_head is the output matrix of"),
        ({"lora_targets": "model.embed_tokens, lm_head"}, "and lm_head is the output matrix of"),
        ({"lora_targets": "lm_head, nothing"}, "no linear layer nothing in its decoder"),
        ({"lora_targets": "layers.2.mlp.down_proj"}, "no linear layer layers.2.mlp.down_proj in its decoder"),
        ({"lora_targets": "layers.1.mlp.q_proj"}, "no linear layer layers.1.mlp.q_proj in its decoder"),
        (
            {"student": "from-teacher", "student_layers": "3", "lora_targets": "layers.3.mlp.down_proj"},
            "no linear layer",
        ),
        ({"lora_targets": ","}, "name some of"),
        ({"student_layer_by_layer": True, "gradient_checkpointing": False}, "leave it out"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(text: Path, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as told:
        planned(text, **asked)
    assert words in told.value.paragraph()


@pytest.mark.parametrize(
    ("architecture", "targets", "share"),
    [
        ("llama", "all-linear", 1),
        ("llama", "model.layers.1.mlp.down_proj", 1 / 2),
        ("llama", "1.mlp.down_proj layers.0.mlp.down_proj", 1),
        ("llama", "layers.1.mlp.down_proj, layers.1.mlp.down_proj, 1.mlp.down_proj", 1 / 2),
        ("gpt2", "transformer.h.0.attn.c_attn", 1 / 2),
        ("gpt2", "h.0.attn.c_attn", 1 / 2),
    ],
)
def test_the_linear_layer_of_one_decoder_layer_can_be_named(architecture: str, targets: str, share: float) -> None:
    """The plan's names are those of the files; those of the model in memory, which decide in the end, are longer."""
    folder = tiny_model(architecture, num_layers=2)
    shape = describe(str(folder))
    config = RunConfig(lora_rank=4, lora_targets=targets, student=str(folder))
    check_adapter(config, shape)
    check_linears(read_spec(folder), prepare_job(lora_rank=4, lora_targets=targets, student=str(folder)))
    named = targets_of(config.lora_targets)
    assert [linear.share for linear in shape.adapted(named)] == [share] * (1 if named else 7)
    model = load_causal_lm(folder, dtype=torch.float32)
    adapter = LowRankAdapter(model, adapter_shape(4, None, config.lora_targets), device=torch.device("cpu"), seed=0)
    assert shape.adapter_parameters(4, named) == adapter.num_parameters


def test_of_a_cut_student_the_layers_that_stay_can_be_named() -> None:
    teacher = read_spec(tiny_model("llama"))
    layers = {"student": "from-teacher", "student_layers": "0,3"}
    asked = prepare_job(lora_rank=4, lora_targets="layers.1.mlp.down_proj", **layers)
    check_linears(teacher, asked)
    with pytest.raises(SettingsError, match="no linear layer"):
        check_linears(teacher, asked.changed({"lora_targets": "layers.3.mlp.down_proj"}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_student_that_is_quantized_is_not_quantized_again(layout: str, text: Path, tmp_path: Path) -> None:
    """The embedding and the head of these are whole, and larger than their layers."""
    small, plain = quantised(layout, tmp_path)
    asked = {"teacher": str(plain), "student_quantization": "nf4", "precision": "fp32"}
    with pytest.raises(SettingsError, match="stored quantized already"):
        planned(text, student=str(small), **asked)
    assert value(planned(text, student=str(plain), **asked), "student_quantization") == "nf4"
    assert value(planned(text, student=str(small), teacher=str(plain), lora_rank=4), "lora_rank") == 4


def test_a_fused_layer_is_named_as_it_is() -> None:
    shape = describe(str(tiny_model("gpt_neox")))
    for asked, changed, words in (
        (RunConfig(lora_targets="q_proj"), shape, "it has dense"),
        (RunConfig(lora_rank=4), replace(shape, linears=()), "no linear layers"),
        (RunConfig(lora_rank=4, student_quantization="nf4"), replace(shape, is_quantized=True), "quantized already"),
        (RunConfig(student_layer_by_layer=True), describe(str(tiny_model("gemma2"))), "scales or caps its logits"),
        (RunConfig(student_layer_by_layer=True, packing=True), replace(shape, model_type="mamba"), "--no_packing"),
    ):
        with pytest.raises(SettingsError) as told:
            check_adapter(asked, changed)
        assert words in told.value.paragraph()


def test_memory_falls_with_each_saving_and_does_not_grow_with_depth_where_layers_are_streamed() -> None:
    whole = student_footprint(LARGE, replace(SETTING, rank=0)).peak_bytes
    held = student_footprint(LARGE, SETTING).peak_bytes
    small = student_footprint(LARGE, replace(SETTING, quantization="nf4")).peak_bytes
    streamed = student_footprint(LARGE, replace(SETTING, layer_by_layer=True)).peak_bytes
    assert whole > held > small > streamed
    assert held < 10 * GIB < whole
    deeper = replace(LARGE, layer_parameters=LARGE.layer_parameters * 2)
    twice = student_footprint(deeper, replace(SETTING, layer_by_layer=True))
    once = student_footprint(LARGE, replace(SETTING, layer_by_layer=True))
    grown = twice.peak_bytes - once.peak_bytes
    a_layer = LARGE.adapter_parameters(64, ()) // 28 * 12 + 512 * WIDE * 2 + 2**20
    assert grown < 28 * a_layer, "an adapter, one border of hidden states and Python's objects, no weights"
    assert twice.parts["weights"] - once.parts["weights"] == 4 * LARGE.adapter_parameters(64, ())


def test_the_rank_is_64_where_the_layers_are_large_enough() -> None:
    assert default_rank(LARGE, ()) == 64
    assert LARGE.adapter_parameters(64, ("q_proj",)) == 64 * 2 * WIDE * 28


@pytest.mark.parametrize("name", ["qwen2_moe", "mixtral", "llama"])
def test_the_reason_names_the_linear_layers_that_get_an_adapter_and_the_experts_that_do_not(
    name: str, text: Path
) -> None:
    student = str(tiny_architecture(name))
    found = planned(text, teacher=student, student=student, lora_rank=4)
    reason = next(choice.reason for choice in found.choices if choice.field == "lora_targets")
    assert "q_proj" in reason
    assert not {"gate", "shared_expert_gate"} & set(reason.replace(";", ",").split(", "))
    assert ("such as experts" in reason) == (name != "llama")


def test_gates_and_norms_do_not_limit_the_rank() -> None:
    """Qwen2-MoE has a gate of one output beside its shared expert, and Cohere norms with a row for each head."""
    for name, changes, absent in (
        ("qwen2_moe", {}, "shared_expert_gate"),
        ("cohere", {"use_qk_norm": True}, "q_norm"),
    ):
        shape = shape_of(read_spec(tiny_architecture(name, **changes)))
        assert default_rank(shape, ()) >= 8
        assert absent not in {linear.name.rpartition(".")[2] for linear in shape.adapted(())}
    assert shape_of(read_spec(tiny_architecture("qwen2_moe"))).adapted(("shared_expert_gate",)), "it can be named"
