"""The choice of a student's layers, on real tiny models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.data.packing import PackedRow
from engine.data.tokens import TokenFile, TokenFileWriter
from engine.model_files.spec import read_spec
from engine.models.derive import derive_student, is_valid_cut, layer_kinds, layers_to_keep
from engine.models.load import load_causal_lm
from engine.models.resident import ResidentTeacher
from engine.models.skipping import cut_to, watched
from engine.models.streaming.teacher import StreamedTeacher
from engine.teacher.depth import Bench, CutRules, Depth, choose_depth, piece_of
from tests.engine.models.architectures import ARCHITECTURES, NEWER, tiny_architecture
from tests.engine.models.architectures import VOCAB_SIZE as FEWEST_IDS
from tests.tiny import VOCAB_SIZE, tiny_model

CPU = torch.device("cpu")
LENGTH = 24


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    path = tmp_path_factory.mktemp("text") / "tokens.h5"
    writer = TokenFileWriter(path, sequence_length=LENGTH, vocab_size=VOCAB_SIZE, pad_id=1, eos_id=0, attributes={})
    numbers = np.random.default_rng(0)
    for split, count in (("train", 40), ("holdout", 9)):
        for _ in range(count):
            ids = numbers.integers(3, min(FEWEST_IDS, VOCAB_SIZE), int(numbers.integers(5, LENGTH + 1)))
            writer.add(split, PackedRow(ids.astype(np.int32), np.arange(len(ids)) > 0))  # type: ignore[arg-type]
    writer.commit()
    return TokenFile(path)


def chosen(folder: Path, tokens: TokenFile, num_layers: int, *, streamed: bool = False, **values: object) -> Depth:
    make = StreamedTeacher if streamed else ResidentTeacher
    teacher = make(folder, dtype=torch.float32, device=CPU)
    spec = read_spec(folder)
    settings = {"named": None, "is_valid": lambda kept: is_valid_cut(spec, kept)} | values
    try:
        return choose_depth(
            Bench(teacher, vocab_size=VOCAB_SIZE, wave_tokens=300, chunk_tokens=50, safe_point=lambda: None),
            piece_of(tokens, "train", 4),
            piece_of(tokens, "holdout", 4),
            CutRules(
                num_layers=num_layers,
                even=lambda count: layers_to_keep(spec.num_layers, count),
                kinds=layer_kinds(spec),
                **settings,  # type: ignore[arg-type]
            ),
        )
    finally:
        teacher.close()


USUAL = ("gpt_neo", "mixtral")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES | NEWER if name not in USUAL]


@pytest.mark.parametrize("name", [*(name for name in USUAL if name in ARCHITECTURES), *SLOW])
def test_a_cut_model_is_the_model_with_these_layers_skipped_bit_for_bit(name: str, tmp_path: Path) -> None:
    folder = tiny_architecture(name)
    spec = read_spec(folder)
    kept = [0, spec.num_layers - 1] if spec.num_layers < 4 else [0, spec.num_layers - 2, spec.num_layers - 1]
    if not is_valid_cut(spec, kept):
        pytest.skip("its layers depend on their numbers, or share weights")
    derive_student(read_spec(folder), kept, tmp_path / "student")
    ids = torch.randint(3, FEWEST_IDS, (2, 20), generator=torch.Generator().manual_seed(0))
    teacher = ResidentTeacher(folder, dtype=torch.float32)
    outputs: list[int | None] = [None] * spec.num_layers

    def heard(index: int, _given: torch.Tensor, output: object) -> None:
        outputs[index] = len(output) if isinstance(output, tuple) else None

    with watched(teacher.layers, heard):
        teacher.last_hidden_states([ids])
    student = ResidentTeacher(tmp_path / "student", dtype=torch.float32)
    with cut_to(teacher.layers, [kept], outputs):
        skipped = teacher.last_hidden_states([ids])[0]
    assert torch.equal(skipped, student.last_hidden_states([ids])[0])
    whole = teacher.last_hidden_states([ids])[0]
    assert not torch.equal(whole, skipped), "afterwards no layer is skipped any more"


@pytest.mark.parametrize("name", ["diffllama", "zamba2"])
def test_layers_with_constants_of_their_numbers_or_shared_weights_stay_together(name: str) -> None:
    spec = read_spec(tiny_architecture(name))
    everything = list(range(spec.num_layers))
    assert is_valid_cut(spec, everything)
    assert not is_valid_cut(spec, [0, *everything[2:]])


@pytest.mark.parametrize(
    "architecture", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "gpt_neox", "gemma2"))]
)
def test_streamed_and_resident_choose_by_the_same_numbers(architecture: str, tokens: TokenFile) -> None:
    folder = tiny_model(architecture, num_layers=6)
    resident, streamed = (chosen(folder, tokens, 3, streamed=streamed) for streamed in (False, True))
    assert resident == streamed
    assert resident == chosen(folder, tokens, 3), "and again by the same"
    assert len(resident.kept) == 3
    assert resident.kept[0] == 0
    assert resident.kept[-1] == 5
    assert [len(cut.layers) for cut in resident.cuts] == [6, 5, 4, 3, 2]


def test_the_loss_after_the_cut_is_that_of_the_cut_student(tokens: TokenFile, tmp_path: Path) -> None:
    folder = tiny_model("llama", num_layers=6)
    for cut in chosen(folder, tokens, 3).cuts:
        derive_student(read_spec(folder), cut.layers, tmp_path / str(len(cut.layers)))
        model = load_causal_lm(tmp_path / str(len(cut.layers)), dtype=torch.float32)
        total = count = 0.0
        for piece in piece_of(tokens, "holdout", 4):
            with torch.no_grad():
                log_probs = model(piece.ids, use_cache=False).logits[:, :-1, :VOCAB_SIZE].log_softmax(-1)
            own = log_probs.gather(2, piece.ids[:, 1:, None])[..., 0][piece.scored[:, 1:]]
            total, count = total - float(own.sum()), count + own.numel()
        assert cut.holdout_loss == pytest.approx(total / count, abs=1e-4)


def test_layers_that_do_nothing_are_the_first_to_go(tokens: TokenFile, tmp_path: Path) -> None:
    model = load_causal_lm(tiny_model("llama", num_layers=6), dtype=torch.float32)
    with torch.no_grad():
        for index in (1, 2, 4):
            layer = model.model.layers[index]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.mul_(1e-3)
    model.save_pretrained(tmp_path)
    found = chosen(tmp_path, tokens, 3)
    assert found.kept == (0, 3, 5)
    assert max(found.influence[index] for index in (1, 2, 4)) < 1e-3 < found.influence[3]
    whole, *_, cut = (entry for entry in found.cuts if len(entry.layers) >= 3)
    assert cut.holdout_loss == pytest.approx(whole.holdout_loss, abs=0.02)


def test_every_kind_of_layer_keeps_one_where_there_is_room(tokens: TokenFile, tmp_path: Path) -> None:
    # Of gemma2's layers every other one looks through a window; those that see everything do nothing here.
    model = load_causal_lm(tiny_model("gemma2", num_layers=8), dtype=torch.float32)
    kinds = model.config.layer_types
    assert kinds[0] == "sliding_attention"
    with torch.no_grad():
        for index in (1, 3, 5):
            for name, parameter in model.model.layers[index].named_parameters():
                if "post_" in name:
                    parameter.fill_(-1.0)  # Gemma's norms multiply with 1 + weight
        last = model.model.layers[7]
        model.config.layer_types[7] = "sliding_attention"
        last.self_attn.is_sliding, last.self_attn.sliding_window = True, 16
    model.save_pretrained(tmp_path)
    found = chosen(tmp_path, tokens, 4)
    if found.way != "even":
        assert {read_spec(tmp_path).config["layer_types"][index] for index in found.kept} == set(kinds)
    assert found.kept[0] == 0
    assert found.kept[-1] == 7


def test_layers_that_the_person_names_are_kept(tokens: TokenFile) -> None:
    found = chosen(tiny_model("llama", num_layers=6), tokens, 2, named=[1, 4])
    assert (found.kept, found.way) == ((1, 4), "named")
    assert (1, 4) in [cut.layers for cut in found.cuts]


def test_only_layers_that_make_a_model_are_chosen(tokens: TokenFile) -> None:
    folder = tiny_model("llama", num_layers=6)
    found = chosen(folder, tokens, 4, is_valid=lambda kept: list(kept) == [0, 1, 4, 5])
    assert found.kept == (0, 1, 4, 5)
    with pytest.raises(Exception, match="No 4 of the teacher's 6 layers"):
        chosen(folder, tokens, 4, is_valid=lambda kept: False)
