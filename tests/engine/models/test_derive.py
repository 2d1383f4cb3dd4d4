import itertools
import json

import pytest
import torch

from engine.errors import ModelError
from engine.model_files.spec import read_spec
from engine.model_files.vocabulary import read_vocabulary
from engine.models.core import find_core
from engine.models.derive import companions, derive_student, is_valid_cut, layers_to_keep
from engine.models.load import load_causal_lm, load_tokenizer
from tests.engine.models.architectures import tiny_architecture
from tests.engine.models.every_architecture import tiny_model_of
from tests.tiny import ARCHITECTURES, VOCAB_SIZE, tiny_model


def forget_layers(model, kept):
    """The teacher with the other layers taken out of its list: what a derived student has to be."""
    core = find_core(model)
    layers = torch.nn.ModuleList([core.layers[index] for index in kept])
    setattr(core.core, core.layers_prefix.rpartition(".")[2], layers)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_a_derived_student_says_what_the_teacher_says_without_the_other_layers(architecture, num_layers, tmp_path):
    teacher_folder = tiny_model(architecture)
    kept = derive_student(read_spec(teacher_folder), num_layers, tmp_path / "student")
    student = load_causal_lm(tmp_path / "student", dtype=torch.float32)
    teacher = forget_layers(load_causal_lm(teacher_folder, dtype=torch.float32), kept)
    ids = torch.randint(2, VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(student(ids, use_cache=False).logits, teacher(ids, use_cache=False).logits)


@pytest.mark.parametrize("name", ["xlstm", "llama4"])
@pytest.mark.parametrize("kept", [[0], [0, 3], [1, 2, 3]])
def test_counts_and_numbers_of_layers_are_cut_whatever_a_family_calls_them(name, kept, tmp_path):
    spec = read_spec(tiny_model_of(name) if name == "llama4" else tiny_architecture(name))
    assert is_valid_cut(spec, kept)
    derive_student(spec, kept, tmp_path / "student")
    student = load_causal_lm(tmp_path / "student", dtype=torch.float32)
    assert len(find_core(student).layers) == len(kept)


def test_a_derived_student_is_a_whole_folder(tmp_path):
    teacher = tiny_model("qwen2", shard_bytes=60_000)
    derive_student(read_spec(teacher), 2, tmp_path / "student")
    spec = read_spec(tmp_path / "student")
    assert spec.num_layers == 2
    assert len(spec.config["layer_types"]) == 2
    assert read_vocabulary(tmp_path / "student").sha == read_vocabulary(teacher).sha
    assert load_tokenizer(tmp_path / "student")("a small model").input_ids
    assert (tmp_path / "student" / "generation_config.json").is_file()
    assert not list((tmp_path / "student").glob("*.tmp"))


def test_kinds_of_layers_that_follow_from_their_number_stay_with_the_layer(tmp_path):
    # Old Gemma files name no kind: every other layer looks through a window. Layers 0 and 3 are of different kinds.
    import shutil

    teacher = shutil.copytree(tiny_model("gemma2"), tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    kinds = config.pop("layer_types")
    (teacher / "config.json").write_text(json.dumps(config))
    kept = derive_student(read_spec(teacher), 3, tmp_path / "student")
    told = json.loads((tmp_path / "student" / "config.json").read_text())["layer_types"]
    assert told == [kinds[index] for index in kept]
    assert told != kinds[:3]


def test_kept_layers_have_the_first_the_last_and_even_distances():
    for teacher_layers in range(1, 60):
        for num_layers in range(1, teacher_layers + 1):
            kept = layers_to_keep(teacher_layers, num_layers)
            assert len(set(kept)) == num_layers
            assert kept == sorted(kept)
            assert kept[0] == 0
            if num_layers > 1:
                assert kept[-1] == teacher_layers - 1
                distances = {later - earlier for earlier, later in itertools.pairwise(kept)}
                assert max(distances) - min(distances) <= 1
    assert layers_to_keep(8, 4) == [0, 2, 5, 7]


def test_more_layers_than_there_are_cannot_be_cut(tmp_path):
    with pytest.raises(ModelError) as caught:
        derive_student(read_spec(tiny_model("llama")), 5, tmp_path / "student")
    assert "which has 4" in caught.value.paragraph()
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("named_in", [None, "config.json", "tokenizer_config.json"])
def test_python_files_are_taken_over_where_the_model_names_code(named_in, tmp_path):
    """A script that happens to be in the teacher's folder is not published with its student."""
    (tmp_path / "modeling_own.py").write_text("")
    for name in ("config.json", "tokenizer_config.json"):
        settings = {"auto_map": {"AutoTokenizer": ["modeling_own.Own", None]}} if name == named_in else {}
        (tmp_path / name).write_text(json.dumps(settings))
    taken = {path.name for path in companions(tmp_path)}
    assert ("modeling_own.py" in taken) == (named_in is not None)
    assert "tokenizer_config.json" in taken
