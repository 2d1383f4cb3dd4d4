"""A LoRA adapter as a model: what peft's merge gives, whole and streamed; what cannot be merged is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from engine.export import write_gguf
from engine.model_files.hub import resolve_model
from engine.model_files.spec import fingerprint, read_spec
from engine.models.checkpoint import Checkpoint
from engine.models.load import load_causal_lm, load_tokenizer
from engine.models.load_in_place import in_memory, load_in_place
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from tests.tiny import VOCAB_SIZE, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
IDS = torch.randint(2, VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(1))
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OF_LLAMA = {"q_proj": (32, 32), "v_proj": (16, 32), "down_proj": (32, 64)}  # [out, in]


def adapter_of(
    base: Path, folder: Path, tensors: dict[str, torch.Tensor] | None = None, *, rank: int = 4, **config: Any
) -> Path:
    """A folder as peft writes it, with random matrices for some weights of a tiny llama."""
    if tensors is None:
        draw = torch.Generator().manual_seed(5)
        tensors = {}
        for layer in range(4):
            for name, (out, into) in OF_LLAMA.items():
                place = f"layers.{layer}.{'mlp' if name == 'down_proj' else 'self_attn'}.{name}"
                tensors[f"{place}.lora_A.weight"] = 0.2 * torch.randn(rank, into, generator=draw)
                tensors[f"{place}.lora_B.weight"] = 0.2 * torch.randn(out, rank, generator=draw)
        tensors = {f"base_model.model.model.{name}": tensor for name, tensor in tensors.items()}
    folder.mkdir(parents=True)
    told = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": rank, "lora_alpha": 16,
            "task_type": "CAUSAL_LM", "target_modules": list(OF_LLAMA), **config}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(told))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def by_hand(base: Path, adapter: Path, scale: Callable[[str, int], float]) -> torch.Tensor:
    """The merged model's logits, its weights changed by the definition in float64."""
    model = load_causal_lm(base, dtype=torch.float32)
    stored = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in stored if name.endswith("lora_A.weight")]:
        a, b = stored[name].double(), stored[name.replace("lora_A", "lora_B")].double()
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        weight = model.get_parameter(f"{module}.weight")
        weight.data = (weight.double() + scale(module, len(a)) * (b @ a)).float()
    return logits(model)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, lambda name, rank: 16 / rank),
        ({"use_rslora": True}, lambda name, rank: 16 / rank**0.5),
        ({"alpha_pattern": {"v_proj": 3}}, lambda name, rank: (3 if name.endswith("v_proj") else 16) / rank),
        (
            {"alpha_pattern": {r"layers\.1\..*_proj": 2, "q_proj": 5}},
            lambda name, rank: (2 if ".1." in name else 5 if "q_proj" in name else 16) / rank,
        ),
    ],
    ids=["plain", "rslora", "alpha of a module", "alpha of a pattern"],
)
def test_the_merged_weights_are_those_of_the_definition(
    config: dict[str, Any], scale: Callable[[str, int], float], tmp_path: Path
) -> None:
    adapter = adapter_of(tiny_model("llama"), tmp_path / "adapter", **config)
    wanted = by_hand(tiny_model("llama"), adapter, scale)
    found = logits(load_causal_lm(resolve_model(adapter), dtype=torch.float32))
    assert (found - wanted).abs().max() < 1e-4 * wanted.std()
    assert (found - logits(load_causal_lm(tiny_model("llama"), dtype=torch.float32))).abs().max() > 0.1 * wanted.std()


def test_whole_streamed_and_in_place_are_one_model_bit_for_bit(tmp_path: Path) -> None:
    folder = resolve_model(adapter_of(tiny_model("llama"), tmp_path / "adapter"))
    for dtype in (torch.float32, torch.bfloat16):
        whole = ResidentTeacher(folder, dtype=dtype)
        streamed = StreamedTeacher(folder, dtype=dtype, device=CPU)
        expected, found = whole.last_hidden_states([IDS]), streamed.last_hidden_states([IDS])
        assert torch.equal(expected[0], found[0])
        assert torch.equal(whole.logits(expected[0][0]), streamed.logits(found[0][0]))
        streamed.close()
    model = load_causal_lm(folder, dtype=torch.float32)
    assert torch.equal(logits(load_in_place(folder, dtype=torch.float32, new_tensor=in_memory)), logits(model))


def test_any_range_of_a_weight_is_that_range_of_the_whole(tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    write_gguf(tiny_model("llama", hidden_size=128), base, weight_type="q8_0")
    tensors = {
        "base_model.model.model.layers.2.mlp.up_proj.lora_A.weight": torch.randn(3, 128),
        "base_model.model.model.layers.2.mlp.up_proj.lora_B.weight": torch.randn(256, 3),
        "base_model.model.model.embed_tokens.lora_embedding_A": torch.randn(3, VOCAB_SIZE),
        "base_model.model.model.embed_tokens.lora_embedding_B": torch.randn(128, 3),
    }
    checkpoint = Checkpoint(resolve_model(adapter_of(base, tmp_path / "adapter", tensors)))
    changed = [name for name, info in checkpoint.tensors.items() if info.made_of]
    assert changed == ["model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight"]
    for name in changed:
        info = checkpoint.tensors[name]
        whole = torch.empty(info.numel)
        checkpoint.read(name, whole)
        for first, count in ((0, 1), (777, 128 * 70), (info.numel - 130, 130), (128 * 64, 128), (63 * 128 + 5, 300)):
            part = torch.empty(count)
            checkpoint.read(name, part, first=first)
            assert torch.equal(part, whole[first : first + count]), (name, first)
    checkpoint.close()


def test_adapters_of_one_base_are_different_models(tmp_path: Path) -> None:
    first = adapter_of(tiny_model("llama"), tmp_path / "first")
    same = shutil.copytree(first, tmp_path / "same")
    other = shutil.copytree(first, tmp_path / "other")
    tensors = load_file(other / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.3.mlp.down_proj.lora_B.weight"][5, 1] += 0.01
    save_file(tensors, other / "adapter_model.safetensors")
    scaled = shutil.copytree(first, tmp_path / "scaled")
    told = json.loads((scaled / "adapter_config.json").read_text())
    (scaled / "adapter_config.json").write_text(json.dumps({**told, "lora_alpha": 17}))
    base = fingerprint(read_spec(tiny_model("llama")))
    found = [fingerprint(read_spec(folder)) for folder in (first, same, other, scaled)]
    assert found[0] == found[1]
    assert len({base, *found}) == 4


def test_the_tokenizer_is_the_adapters_where_it_has_one(tmp_path: Path) -> None:
    adapter = adapter_of(tiny_model("llama"), tmp_path / "adapter")
    assert len(load_tokenizer(resolve_model(adapter))) == VOCAB_SIZE
    tokenizer = load_tokenizer(tiny_model("llama"))
    tokenizer.add_tokens(["<|mine|>"])
    tokenizer.save_pretrained(adapter)
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    found = load_tokenizer(resolve_model(adapter))
    assert len(found) == VOCAB_SIZE + 1
    assert found.chat_template == "{{ messages }}"


@pytest.mark.parametrize("inside", [True, False])
def test_an_adapter_in_a_students_folder_points_to_the_student(inside: bool, tmp_path: Path) -> None:
    """A student's folder holds its adapter, whose base has another place on each machine, or none."""
    if inside:
        shutil.copytree(tiny_model("llama"), tmp_path / "student")
    adapter = adapter_of(Path("not-here"), tmp_path / "student" / "adapter")
    with pytest.raises(ModelError, match="changes the model not-here") as caught:
        resolve_model(adapter)
    place = f"Name {tmp_path / 'student'} instead" if inside else "base_model_name_or_path"
    assert place in caught.value.todo


def test_a_folder_without_a_model_under_the_bases_name_is_told_apart_from_the_student(tmp_path, monkeypatch) -> None:
    (tmp_path / "here" / "base").mkdir(parents=True)  # such as a run that has the model's name
    (tmp_path / "here" / "base" / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(tiny_model("llama"), tmp_path / "student")
    adapter = adapter_of(Path("base"), tmp_path / "student" / "adapter")
    with pytest.raises(ModelError) as caught:
        resolve_model(adapter)
    assert "base has no config.json" in caught.value.why
    assert f"Name {tmp_path / 'student'} instead" in caught.value.todo


def test_a_circle_of_adapters_is_told_once(tmp_path: Path) -> None:
    adapter_of(tmp_path / "other", tmp_path / "one")
    adapter_of(tmp_path / "one", tmp_path / "other")
    adapter_of(tmp_path / "itself", tmp_path / "itself")
    for name in ("one", "other", "itself"):
        with pytest.raises(ModelError, match="as is its own base") as caught:
            resolve_model(tmp_path / name)
        assert len(caught.value.paragraph()) < 500


def test_the_base_is_found_beside_the_adapter_and_named_where_it_is_not(tmp_path: Path) -> None:
    adapter = adapter_of(Path("../base"), tmp_path / "adapter")
    with pytest.raises(ModelError) as caught:
        resolve_model(adapter)
    assert "changes the model ../base, which cannot be used" in caught.value.what
    shutil.copytree(tiny_model("llama"), tmp_path / "base")
    assert read_spec(adapter).num_layers == 4
    other = adapter_of(Path("someone/not-here"), tmp_path / "other")
    with pytest.raises(ModelError, match="changes the model someone/not-here") as caught:
        read_spec(other)
    assert "cache" in caught.value.paragraph()


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "DoRA"),
    "ia3": ({"peft_type": "IA3"}, "type IA3"),
    "classifier": ({"task_type": "SEQ_CLS"}, "task SEQ_CLS"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    "loftq": ({"init_lora_weights": "loftq"}, "loftq"),
    "replicated layers": ({"layer_replication": [[0, 4], [2, 4]]}, "layer replication"),
    "experts": ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "biases": ({"lora_bias": True}, "lora_bias"),
    "activated": ({"alora_invocation_tokens": [1]}, "aLoRA"),
    "a revision": ({"revision": "v2"}, "the revision v2"),
    "no base": ({"base_model_name_or_path": None}, "does not name the base model"),
    "no alpha": ({"lora_alpha": "much"}, "lora_alpha = much"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_adapter_that_cannot_be_merged_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    config, words = BROKEN[case]
    adapter = adapter_of(tiny_model("llama"), tmp_path / "adapter", **config)
    with pytest.raises(ModelError) as caught:
        read_spec(adapter)
    assert words in caught.value.paragraph()
    assert caught.value.todo


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (4, 48), "by (32, 4) times (4, 48)"),
        ("model.layers.9.self_attn.q_proj.lora_A.weight", (4, 32), "one of the two matrices"),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", (32,), "lora_magnitude_vector"),
        ("model.layers.0.self_attn.z_proj.weight", (32, 32), "does not have"),
        ("model.norm.weight", (48,), "by (48,) of float32"),
    ],
)
def test_an_adapter_of_another_model_is_refused(name: str, shape: tuple[int, ...], words: str, tmp_path: Path) -> None:
    adapter = adapter_of(tiny_model("llama"), tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[f"base_model.model.{name}"] = torch.zeros(shape)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError) as caught:
        read_spec(adapter)
    assert words in caught.value.paragraph()


def test_missing_pickled_and_damaged_weights_are_told_apart(tmp_path: Path) -> None:
    adapter = adapter_of(tiny_model("llama"), tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="its header lists"):
        read_spec(adapter)
    weights.unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors") as caught:
        read_spec(adapter)
    assert "did not end" in caught.value.why
    (adapter / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError) as caught:
        read_spec(adapter)
    assert "pickle" in caught.value.why


def test_a_whole_weight_takes_the_place_of_the_bases_and_of_a_tied_head(tmp_path: Path) -> None:
    base = tiny_model("qwen2")
    rows = read_spec(base).vocab_size
    head = torch.randn(rows, 32)
    tensors = {"base_model.model.lm_head.weight": head, "base_model.model.model.norm.weight": torch.full((32,), 0.5)}
    spec = read_spec(adapter_of(base, tmp_path / "head", tensors, modules_to_save=["lm_head", "norm"]))
    assert not spec.tied_embeddings
    model = load_causal_lm(spec.path, dtype=torch.float32)
    assert torch.equal(model.lm_head.weight, head)
    assert torch.equal(model.model.norm.weight, torch.full((32,), 0.5))
    assert not torch.equal(model.get_input_embeddings().weight, head)
    # An embedding alone: the head stays what it was.
    tensors = {"base_model.model.model.embed_tokens.weight": head}
    spec = read_spec(adapter_of(base, tmp_path / "embedding", tensors, modules_to_save=["embed_tokens"]))
    model = load_causal_lm(spec.path, dtype=torch.float32)
    assert torch.equal(model.get_input_embeddings().weight, head)
    assert not torch.equal(model.lm_head.weight, head)
    # Rows were added: embedding and head are still one, and config.json says how many there are.
    more = {"base_model.model.model.embed_tokens.weight": torch.randn(rows + 8, 32)}
    spec = read_spec(adapter_of(base, tmp_path / "added", more))
    assert spec.tied_embeddings
    assert spec.vocab_size == rows + 8
    assert load_causal_lm(spec.path, dtype=torch.float32).lm_head.weight.shape == (rows + 8, 32)


def peft_model(base: Path, **config: Any) -> Any:
    """A model that peft has put an adapter into, with matrices that are not zero."""
    peft = pytest.importorskip("peft")
    model = load_causal_lm(base, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
            elif "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.peft_config["default"].base_model_name_or_path = str(base)
    return model.eval()


PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"target_modules": ALL, "r": 8}),
    "rslora": ("llama", {"target_modules": ALL, "r": 8, "use_rslora": True}),
    "patterns": ("llama", {"target_modules": ALL, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 9}}),
    "all linear": ("gemma2", {"target_modules": "all-linear"}),
    "biases": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "bias": "all"}),
    "head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt_neox": ("gpt_neox", {"target_modules": ["query_key_value", "dense"]}),
    "tied embedding": ("qwen2", {"target_modules": ["q_proj", "embed_tokens"]}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PEFT)
def test_the_model_is_what_peft_computes_and_merges(case: str, tmp_path: Path) -> None:
    name, config = PEFT[case]
    model = peft_model(tiny_model(name), **config)
    wanted = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    found = logits(load_causal_lm(resolve_model(tmp_path / "adapter"), dtype=torch.float32))
    assert (found - wanted).abs().max() < 1e-4 * wanted.std()
    if case == "tied embedding":
        return  # peft's merge changes the head with it, unlike its own forward pass, and warns of that
    merged = logits(model.merge_and_unload())
    assert (found - merged).abs().max() < 1e-4 * wanted.std()


@pytest.mark.filterwarnings("ignore")
def test_dora_of_peft_is_refused(tmp_path: Path) -> None:
    peft_model(tiny_model("llama"), target_modules=["q_proj"], use_dora=True).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="DoRA"):
        read_spec(tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_peft_on_added_tokens_is_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = load_causal_lm(tiny_model("llama"), dtype=torch.float32)
    tokenizer = tiny_tokenizer()
    model.resize_token_embeddings(VOCAB_SIZE + 5)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).eval()
    model.peft_config["default"].base_model_name_or_path = str(tiny_model("llama"))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert read_spec(tmp_path / "adapter").vocab_size == VOCAB_SIZE + 5
    found = logits(load_causal_lm(resolve_model(tmp_path / "adapter"), dtype=torch.float32))
    assert (found - logits(model)).abs().max() < 1e-4 * found.std()
