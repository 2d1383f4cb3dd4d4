"""Causal models of many kinds as teachers and as students, each held against transformers' own plain forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from engine.errors import ModelError
from engine.model_files.adapter_shape import AdapterShape
from engine.model_files.spec import read_spec
from engine.models.causal import check_causal
from engine.models.core import find_core, head_is_linear
from engine.models.derive import derive_student, is_valid_cut, layer_kinds, layers_to_keep
from engine.models.load import load_causal_lm
from engine.models.packed import packed_hidden_states
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from engine.phases.prepare import check_linears
from engine.planner.shape import shape_of
from engine.student.adapter import LowRankAdapter
from engine.student.adapter_file import write_adapter, write_merged
from engine.student.export import rehearse_export
from engine.teacher.depth import Bench, CutRules, Piece, choose_depth
from tests.engine.models.architectures import VOCAB_SIZE
from tests.engine.models.equality import assert_same_numbers
from tests.engine.models.every_architecture import EVERY, LOOPS, tiny_model_of
from tests.jobs import prepare_job

QUICK = ("bert", "bamba", "deepseek_v3", "gemma3n")
CPU = torch.device("cpu")

every = pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in EVERY if name not in QUICK)]
)


def folder_of(name: str) -> Path:
    if EVERY[name][0] not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    return tiny_model_of(name)


def ids(length: int = 24) -> Tensor:
    return torch.randint(3, VOCAB_SIZE, (2, length), generator=torch.Generator().manual_seed(0))


def plain_logits(folder: Path, given: Tensor) -> tuple[Tensor, dict[str, Any]]:
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    with torch.no_grad():
        return model.eval()(input_ids=given, use_cache=False).logits, loading


@every
def test_a_teacher_says_what_transformers_says_whole_and_streamed(name: str) -> None:
    folder, given = folder_of(name), ids()
    expected, _ = plain_logits(folder, given)
    resident = ResidentTeacher(folder, dtype=torch.float32)
    states = resident.last_hidden_states([given])[0]
    logits = resident.logits(states.flatten(0, 1)).view(*given.shape, -1)
    # RWKV alone halves its hidden states on the way, which rounds otherwise.
    assert_same_numbers(logits, expected, tolerance=1e-4 * float(expected.abs().max()), what=name)
    streamed = StreamedTeacher(folder, dtype=torch.float32, device=CPU)
    try:
        assert_same_numbers(streamed.last_hidden_states([given])[0], states, tolerance=1e-5, what=f"{name} streamed")
        assert_same_numbers(streamed.logits(states[0]), logits[0], tolerance=1e-4, what=f"{name} streamed head")
    finally:
        streamed.close()


@every
def test_documents_of_a_row_are_as_they_are_alone(name: str) -> None:
    model = load_causal_lm(folder_of(name), dtype=torch.float32)
    given = ids(24)[:1]
    documents = torch.repeat_interleave(torch.tensor([9, 15]))[None]
    with torch.no_grad():
        together = packed_hidden_states(model, given, documents)
        alone = torch.cat([packed_hidden_states(model, part, None) for part in given.split([9, 15], dim=1)], dim=1)
    assert_same_numbers(together, alone, tolerance=1e-4 * float(alone.abs().max()), what=name)


def valid_cut(folder: Path) -> list[int] | None:
    spec = read_spec(folder)
    tried = ([0, 3], [0, 1, 3], [0, 2, 3], [0, 1])
    return next((kept for kept in tried if is_valid_cut(spec, kept)), None)


NO_CUT = {"inkling2": "a part of each layer is in a list of its own"}


@every
def test_a_cut_student_is_its_teacher_without_the_other_layers(name: str, tmp_path: Path) -> None:
    folder = folder_of(name)
    kept = valid_cut(folder)
    assert (kept is None) == (name in NO_CUT)
    if kept is None:
        return
    derive_student(read_spec(folder), kept, tmp_path / "student")
    assert rehearse_export(read_spec(tmp_path / "student"), tmp_path / "end") == []
    found, loading = plain_logits(tmp_path / "student", ids())
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    student, teacher = (load_causal_lm(path, dtype=torch.float32) for path in (tmp_path / "student", folder))
    for mine, index in zip(find_core(student).layers, kept, strict=True):
        for (_, ours), (path, theirs) in zip(
            mine.named_parameters(), find_core(teacher).layers[index].named_parameters(), strict=True
        ):
            assert torch.equal(ours, theirs), f"{name}: layer {index}, {path}"
    assert torch.isfinite(found).all()


@every
def test_the_choice_of_layers_ends_with_a_model_or_a_sentence(name: str) -> None:
    folder = folder_of(name)
    spec = read_spec(folder)
    whole = torch.ones(2, 24, dtype=torch.bool)
    pieces = [Piece(ids(), whole, whole)]
    rules = CutRules(
        num_layers=3,
        named=None,
        even=lambda count: layers_to_keep(spec.num_layers, count),
        kinds=layer_kinds(spec),
        is_valid=lambda layers: is_valid_cut(spec, layers),
    )

    def choose(teacher: Any) -> Any:
        bench = Bench(teacher, vocab_size=VOCAB_SIZE, wave_tokens=1000, chunk_tokens=64, safe_point=lambda: None)
        return choose_depth(bench, pieces, [], rules)

    resident = ResidentTeacher(folder, dtype=torch.float32)
    if name in NO_CUT:
        with pytest.raises(ModelError, match="make a model of its architecture"):
            choose(resident)
        return
    found = choose(resident)
    assert is_valid_cut(spec, found.kept)
    streamed = StreamedTeacher(folder, dtype=torch.float32, device=CPU)
    try:
        assert choose(streamed).kept == found.kept
    finally:
        streamed.close()


def trained_adapter(model: PreTrainedModel) -> LowRankAdapter:
    adapter = LowRankAdapter(model, AdapterShape(2, 4.0), device=CPU, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter


# peft refuses or renames what these would need; the merged student is whole, and a note says so.
NOT_FOR_PEFT = ("inkling2", "mamba2")


@every
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
def test_an_adapter_is_the_same_beside_its_base_merged_and_in_peft(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder, given = folder_of(name), ids()
    model = load_causal_lm(folder, dtype=torch.float32)
    before = model(input_ids=given, use_cache=False).logits.detach()
    adapter = trained_adapter(model)
    with torch.no_grad():
        beside = model(input_ids=given, use_cache=False).logits
        with adapter.off():
            assert torch.equal(model(input_ids=given, use_cache=False).logits, before)
    scale = float(beside.abs().max())
    assert not torch.allclose(beside, before, atol=1e-3 * scale)
    write_merged(adapter, read_spec(folder), tmp_path / "model.safetensors")
    for file in ("config.json", "tokenizer.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    merged = load_causal_lm(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert_same_numbers(
            merged(input_ids=given, use_cache=False).logits, beside, tolerance=1e-3 * scale, what=f"{name} merged"
        )
    notes = write_adapter(adapter, model, tmp_path / "adapter", base=str(folder))
    assert bool(notes) == (name in NOT_FOR_PEFT), notes
    if not notes:
        loaded = peft.PeftModel.from_pretrained(load_causal_lm(folder, dtype=torch.float32), tmp_path / "adapter")
        with torch.no_grad():
            assert_same_numbers(
                loaded.eval()(input_ids=given, use_cache=False).logits, beside, tolerance=1e-3 * scale, what="peft"
            )


@every
def test_the_planner_knows_which_heads_are_more_than_a_matrix(name: str) -> None:
    folder = folder_of(name)
    is_matrix = head_is_linear(load_causal_lm(folder, dtype=torch.float32)) is not None
    assert shape_of(read_spec(folder)).has_plain_head == is_matrix


@pytest.mark.parametrize("name", LOOPS)
def test_a_model_that_uses_its_layers_several_times_is_a_teacher_in_memory_alone(name: str) -> None:
    if LOOPS[name][0] not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    folder, given = tiny_model_of(name), ids()
    expected, _ = plain_logits(folder, given)
    teacher = ResidentTeacher(folder, dtype=torch.float32)
    states = teacher.last_hidden_states([given])[0]
    found = teacher.logits(states.flatten(0, 1)).view(*given.shape, -1)
    assert_same_numbers(found, expected, tolerance=1e-4 * float(expected.abs().max()), what=name)
    with pytest.raises(ModelError, match=r"where layer . was expected"):
        StreamedTeacher(folder, dtype=torch.float32, device=CPU).last_hidden_states([given])
    whole = torch.ones(2, 24, dtype=torch.bool)
    rules = CutRules(1, None, lambda count: [0], layer_kinds(read_spec(folder)), lambda layers: True)
    bench = Bench(teacher, vocab_size=VOCAB_SIZE, wave_tokens=1000, chunk_tokens=64, safe_point=lambda: None)
    with pytest.raises(ModelError, match="once and in order"):
        choose_depth(bench, [Piece(given, whole, whole)], [], rules)


def test_an_adapter_that_could_not_be_merged_is_refused_before_the_teacher_scores() -> None:
    if LOOPS["hrm"][0] not in CONFIG_MAPPING:
        pytest.skip("this transformers has no HRM")
    folder = tiny_model_of("hrm")  # its files hold query, key and value as one tensor
    with pytest.raises(ModelError, match="is not one tensor of the files"):
        check_linears(read_spec(folder), prepare_job(lora_rank=2, student=str(folder)))


SEE_BOTH_SIDES: dict[str, dict[str, Any]] = {
    "bert": {"is_decoder": False},
    "roberta": {"is_decoder": False},
    "bert_generation": {"is_decoder": False},
}


@pytest.mark.parametrize("name", SEE_BOTH_SIDES)
def test_a_model_that_sees_the_next_token_is_refused_by_its_settings_and_by_what_it_computes(name: str) -> None:
    folder = tiny_model_of(name, **SEE_BOTH_SIDES[name])
    with pytest.raises(ModelError, match="sees the tokens on both sides"):
        read_spec(folder)
    with pytest.raises(ModelError, match="depends on the tokens after it"):
        ResidentTeacher(folder, dtype=torch.float32)


@every
def test_causal_models_are_found_to_be_so(name: str) -> None:
    check_causal(load_causal_lm(folder_of(name), dtype=torch.float32))
