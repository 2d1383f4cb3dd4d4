import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine.errors import ModelError
from engine.model_files.vocabulary import read_chat_template
from engine.models import load, load_quantized, quantize
from engine.models.core import find_core
from engine.models.load import load_causal_lm, load_tokenizer
from engine.models.resident import ResidentTeacher
from tests.tiny import ARCHITECTURES, PADDING_ROWS, VOCAB_SIZE, tiny_model


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(tiny_model("llama"), tmp_path / "model")


def without(folder, name):
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_resident_teacher_says_what_the_model_says(architecture):
    teacher = ResidentTeacher(tiny_model(architecture), dtype=torch.float32)
    model = load_causal_lm(tiny_model(architecture), dtype=torch.float32)
    batches = [torch.randint(2, VOCAB_SIZE, (2, length)) for length in (5, 30, 1)]
    seen = []
    states = teacher.last_hidden_states(batches, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for ids, hidden_states in zip(batches, states, strict=True):
        logits = teacher.logits(hidden_states.flatten(0, 1))
        assert logits.dtype == torch.float32
        assert not logits.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(logits.view(*ids.shape, -1), model(ids).logits, rtol=1e-5, atol=1e-5)
    assert teacher.vocab_rows == logits.shape[1]
    teacher.close()


def test_padded_rows_are_in_the_logits():
    assert ResidentTeacher(tiny_model("qwen2"), dtype=torch.float32).vocab_rows == VOCAB_SIZE + PADDING_ROWS


def test_the_weights_have_the_dtype_asked_for_and_are_not_trained():
    teacher = ResidentTeacher(tiny_model("llama"), dtype=torch.bfloat16)
    assert {value.dtype for value in teacher.model.parameters()} == {torch.bfloat16}
    assert not any(value.requires_grad for value in teacher.model.parameters())
    assert not teacher.model.training
    assert teacher.logits(torch.zeros(2, 32, dtype=torch.bfloat16)).dtype == torch.float32


def test_loading_draws_nothing_on_the_screen(capfd):
    load_causal_lm(tiny_model("llama"), dtype=torch.float32)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_are_missing_are_not_made_up(folder, name):
    without(folder, name)
    with pytest.raises(ModelError) as caught:
        load_causal_lm(folder, dtype=torch.float32)
    assert name in caught.value.paragraph()


def test_weights_of_another_shape_are_refused(folder, capfd):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.down_proj\.weight in the shape .* nor 11 more"):
        load_causal_lm(folder, dtype=torch.float32)
    assert capfd.readouterr().err == ""


def test_pickles_are_not_opened(folder):
    weights = {"x": torch.zeros(1)}
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_causal_lm(folder, dtype=torch.float32)


def test_a_model_that_transformers_does_not_know_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_thing"}))
    with pytest.raises(ModelError, match="cannot be used"):
        load_causal_lm(folder, dtype=torch.float32)


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "a list"])
def test_a_chat_template_is_the_same_for_the_plan_and_for_the_tokenizer(folder, place):
    template = "{{ messages[0]['content'] }}!"
    if place == "chat_template.jinja":
        (folder / place).write_text(template)
    else:
        path = folder / ("tokenizer_config.json" if place == "a list" else place)
        value = [{"name": "default", "template": template}] if place == "a list" else template
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**before, "chat_template": value}))
    assert read_chat_template(folder) == template
    turns = [{"role": "user", "content": "hello"}]
    assert load_tokenizer(folder).apply_chat_template(turns, tokenize=False) == "hello!"


def test_the_tokenizer_is_loaded_or_refused(folder, tmp_path):
    assert len(load_tokenizer(folder)) == VOCAB_SIZE
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(tmp_path / "empty")


# The meta device stands for any that is not the CPU; the development environment has no accelerate.
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_is_loaded_on_a_device_that_is_not_the_cpu(architecture):
    model = load_causal_lm(tiny_model(architecture), dtype=torch.bfloat16, device="meta")
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_no_whole_model_is_there_before_it_is_quantised(monkeypatch, architecture, quantization):
    arrived, own_pack = [], quantize.QuantizedLinear.pack
    models, own_build = [], load_quantized.build_on_meta

    def pack(self, weight):
        arrived.append(weight.device.type)
        linears = [each for each in find_core(models[0]).layers.modules() if isinstance(each, nn.Linear | Conv1D)]
        assert not linears, "a matrix waits to be quantised"
        return own_pack(self, weight)

    monkeypatch.setattr(quantize.QuantizedLinear, "pack", pack)
    monkeypatch.setattr(load_quantized, "build_on_meta", lambda *a, **k: models.append(own_build(*a, **k)) or models[0])
    teacher = ResidentTeacher(tiny_model(architecture), dtype=torch.float32, device="meta", quantization=quantization)
    assert set(arrived) == {"meta"}, "each matrix is quantised where it will be used"
    assert {tensor.device.type for tensor in teacher.model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_weight_that_is_no_number_is_found_before_it_is_quantised(tmp_path, quantization):
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("up_proj.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="NaN or infinity"):
        ResidentTeacher(tmp_path / "model", dtype=torch.float32, quantization=quantization)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), OSError(errno.ENOMEM, "no memory")])
def test_a_lack_of_memory_while_loading_is_not_blamed_on_the_model(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(type(error)):
        load_causal_lm(tiny_model("llama"), dtype=torch.float32)


@pytest.mark.parametrize(("said", "kind"), [("CUDA out of memory", MemoryError), ("a bad shape", ModelError)])
def test_what_transformers_swallows_while_it_fuses_experts_is_told(monkeypatch, said, kind):
    from transformers import core_model_loading

    from tests.engine.models.architectures import tiny_architecture

    def fail(self, *args, **kwargs):
        raise RuntimeError(said)

    monkeypatch.setattr(core_model_loading.Concatenate, "convert", fail)
    with pytest.raises(kind):
        load_causal_lm(tiny_architecture("mixtral"), dtype=torch.float32)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "qwen2", "gpt2", "gemma2"])
def test_weights_that_cannot_be_mapped_are_read_plainly(architecture, monkeypatch):
    folder = tiny_model(architecture)
    wanted = load_causal_lm(folder, dtype=torch.float32).state_dict()

    def refuse(*_given, **_named):
        raise OSError("No such device (os error 19)")

    monkeypatch.setattr("transformers.modeling_utils.safe_open", refuse)
    found = load_causal_lm(folder, dtype=torch.float32).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
