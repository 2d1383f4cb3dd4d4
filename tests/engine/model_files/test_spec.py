import contextlib
import json
import shutil
import subprocess
import sys
import time

import pytest
import torch

from engine.errors import ModelError, TinyDistillError
from engine.model_files.hub import resolve_model
from engine.model_files.spec import fingerprint, read_spec
from engine.models.load import load_causal_lm
from tests.tiny import ARCHITECTURES, MAX_POSITIONS, PADDING_ROWS, VOCAB_SIZE, tiny_model


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(tiny_model("llama"), tmp_path / "model")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        if value is None:
            config.pop(name, None)
        else:
            config[name] = value
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder, **options) -> str:
    with pytest.raises(ModelError) as caught:
        read_spec(folder, **options)
    assert caught.value.exit_code == 2
    assert caught.value.todo, "the message says what to do"
    return caught.value.paragraph()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_description_agrees_with_the_loaded_model(architecture):
    spec = read_spec(tiny_model(architecture))
    model = load_causal_lm(tiny_model(architecture), dtype=torch.float32)
    assert spec.architecture == type(model).__name__
    assert spec.model_type == architecture
    assert (spec.num_layers, spec.hidden_size, spec.num_heads, spec.head_dim) == (4, 32, 2, 16)
    assert spec.vocab_size == model.get_input_embeddings().weight.shape[0]
    assert spec.tied_embeddings == (model.get_input_embeddings().weight is model.get_output_embeddings().weight)
    assert spec.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    layers = model.get_submodule(spec.layers_prefix)
    assert spec.layer_parameters == [sum(value.numel() for value in layer.parameters()) for layer in layers]
    assert spec.embedding_parameters == model.get_input_embeddings().weight.numel()
    assert spec.max_positions == MAX_POSITIONS
    groups = (*spec.layer_parameters, spec.embedding_parameters, spec.head_parameters, spec.other_parameters)
    assert sum(groups) == spec.num_parameters
    assert spec.dtype == "float32"


def test_padded_rows_are_rows_of_the_embedding():
    assert read_spec(tiny_model("qwen2")).vocab_size == VOCAB_SIZE + PADDING_ROWS


def test_several_files_are_described_like_one():
    one, many = read_spec(tiny_model("llama")), read_spec(tiny_model("llama", shard_bytes=50_000))
    assert len({tensor.file for tensor in many.tensors.values()}) > 1
    assert many.num_parameters == one.num_parameters
    assert many.layer_parameters == one.layer_parameters
    assert fingerprint(many) == fingerprint(one), "the same weights in other files are the same weights"


def test_the_offset_of_a_tensor_is_where_its_bytes_are():
    spec = read_spec(tiny_model("gpt2"))
    model = load_causal_lm(tiny_model("gpt2"), dtype=torch.float32)
    tensor = spec.tensors["transformer.h.2.attn.c_attn.weight"]
    data = tensor.file.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
    stored = torch.frombuffer(bytearray(data), dtype=torch.float32).view(tensor.shape)
    assert torch.equal(stored, model.transformer.h[2].attn.c_attn.weight)


def test_half_precision_is_told_from_the_files_whatever_config_says(tmp_path):
    folder = shutil.copytree(tiny_model("llama", dtype="bfloat16"), tmp_path / "model")
    change_config(folder, dtype="float32", torch_dtype="float32")
    assert read_spec(folder).dtype == "bfloat16"


def test_masks_and_tables_in_old_files_are_no_parameters(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model("gpt2"), tmp_path / "old")
    before = read_spec(folder)
    tensors = load_file(folder / "model.safetensors")
    for index in range(4):
        tensors[f"transformer.h.{index}.attn.bias"] = torch.tril(torch.ones(1, 1, 8, 8))
        tensors[f"transformer.h.{index}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors[f"transformer.h.{index}.attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors[f"transformer.h.{index}.attn.causal"] = torch.ones(8, 8, dtype=torch.bool)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    after = read_spec(folder)
    assert after.num_parameters == before.num_parameters
    assert after.layer_parameters == before.layer_parameters


def test_a_fingerprint_changes_with_one_trained_step_and_not_with_a_copy(folder):
    from safetensors.torch import load_file, save_file

    original = fingerprint(read_spec(tiny_model("llama")))
    assert fingerprint(read_spec(folder)) == original
    change_config(folder, transformers_version="4.0.0", _name_or_path="elsewhere")
    assert fingerprint(read_spec(folder)) == original
    tensors = {name: tensor + 1e-6 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(read_spec(folder)) != original
    assert fingerprint(read_spec(tiny_model("llama", seed=1))) != original


def test_a_changed_configuration_is_another_model(folder):
    change_config(folder, rms_norm_eps=1e-3)
    assert fingerprint(read_spec(folder)) != fingerprint(read_spec(tiny_model("llama")))


def test_reading_takes_milliseconds_and_no_torch():
    folder = tiny_model("llama", num_layers=40)
    read_spec(folder)
    began = time.perf_counter()
    fingerprint(read_spec(folder))
    assert time.perf_counter() - began < 0.2  # 5 ms on an idle machine
    modules = "engine.model_files.spec, engine.model_files.vocabulary"
    code = f"import sys, {modules}; print({{'torch', 'transformers'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_folder_that_is_missing(tmp_path):
    assert "no folder" in refused(tmp_path / "nowhere")


def test_a_folder_without_a_configuration(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "no config.json" in refused(tmp_path)


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "not a causal language model"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "blt"}, "cannot be used: it reads bytes in patches"),
        ({"model_type": "moshi"}, "cannot be used: it reads and writes sound"),
        ({"model_type": "gemma4_assistant"}, "the model that it drafts for"),
        ({"model_type": "prophetnet"}, "it predicts several tokens"),
        ({"quantization_config": {"quant_method": "aqlm"}}, r"already quantised (aqlm)"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"no tensor is stored in that way"),
        ({"num_hidden_layers": 6}, "says 6 layers, the files hold 4"),
        ({"num_hidden_layers": 3}, "says 3 layers, the files hold 4"),
        ({"num_hidden_layers": "four"}, "num_hidden_layers"),
        ({"vocab_size": 500}, "vocab_size = 500"),
        ({"model_type": None}, "model_type"),
        ({"hidden_size": None}, "hidden_size"),
        ({"model_type": "other", "auto_map": {"AutoModelForCausalLM": "m.M"}}, "brings its own code"),
    ],
)
def test_a_configuration_that_lies_or_does_not_fit_is_refused(folder, changes, said):
    change_config(folder, **changes)
    assert said in refused(folder)


@pytest.mark.parametrize("wrong", [float("nan"), -1, True, [1], {"a": 1}, "x", None], ids=repr)
def test_any_value_of_a_configuration_is_read_or_refused(folder, wrong):
    for name in json.loads((folder / "config.json").read_text()):
        before = (folder / "config.json").read_bytes()
        change_config(folder, **{name: wrong})
        with contextlib.suppress(TinyDistillError):
            read_spec(resolve_model(folder))
        (folder / "config.json").write_bytes(before)


def test_own_code_is_accepted_when_it_is_trusted_or_not_needed(folder):
    change_config(folder, auto_map={"AutoModelForCausalLM": "m.M"})
    read_spec(folder)
    change_config(folder, model_type="other")
    read_spec(folder, trust_remote_code=True)


def test_a_head_that_is_missing_is_not_made_up(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "hold no head" in refused(folder)


def test_pickles_are_refused_with_the_way_to_convert_them(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refused(folder)
    assert "pickles" in message
    assert "save_pretrained" in message


def test_a_damaged_gguf_is_refused(tmp_path):
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    assert "damaged GGUF header" in refused(tmp_path)
    assert "damaged GGUF header" in refused(tmp_path / "model-q4.gguf")


def test_weights_that_are_cut_short_are_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "but its header lists" in refused(folder)
    file.write_bytes(b"\x01")
    assert "not a safetensors file" in refused(folder)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    assert "git lfs pull" in refused(folder)


def test_a_missing_part_of_the_weights_is_named(tmp_path):
    folder = shutil.copytree(tiny_model("llama", shard_bytes=50_000), tmp_path / "model")
    victim = sorted(folder.glob("model-*.safetensors"))[1]
    victim.unlink()
    message = refused(folder)
    assert victim.name in message
    assert "1 are missing" in message or "1 is missing" in message


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    assert "no weights" in refused(folder)


@pytest.mark.parametrize("content", ["", "[1]", "{torn"])
def test_a_configuration_that_cannot_be_read(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json" in refused(folder)


@pytest.mark.parametrize(
    ("kind", "settings", "most"),
    [
        ("llama", {}, 128),
        ("roberta", {"is_decoder": True}, 126),  # the first position is that of the padding, and one more
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 16}}, 16),
        ("phi3", {"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 32}, 32),
    ],
)
def test_the_longest_text_is_known(folder, kind, settings, most):
    change_config(folder, model_type=kind, max_position_embeddings=128, pad_token_id=1, **settings)
    assert read_spec(folder).max_positions == most


@pytest.mark.parametrize("settings", [{"use_bidirectional_attention": True}, {"is_causal": False}])
def test_settings_that_let_a_model_see_the_next_token_are_refused(folder, settings):
    change_config(folder, **settings)
    assert "sees the tokens on both sides" in refused(folder)
