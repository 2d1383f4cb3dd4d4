"""The text model in a vision wrapper is a model: the wrapper's logits of text, whole and streamed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from engine.errors import ModelError
from engine.model_files.adapter_shape import AdapterShape
from engine.model_files.hub import resolve_model
from engine.model_files.spec import read_spec
from engine.model_files.vocabulary import read_vocabulary
from engine.models.load import load_causal_lm
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from engine.planner.shape import shape_of
from engine.student.adapter import LowRankAdapter
from engine.student.adapter_file import write_adapter
from tests.tiny import VOCAB_SIZE, tiny_tokenizer

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
_TEXT = {**_SIZES, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": VOCAB_SIZE}
_VISION = {**_SIZES, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
_QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
_MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": _TEXT, "vision_config": _VISION, "mm_tokens_per_image": 4, "image_token_index": 300},
    "llava": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {**_VISION, "model_type": "clip_vision_model"},
        "image_token_index": 300,
    },
    "mistral3": {
        "text_config": {**_TEXT, "model_type": "mistral"},
        "vision_config": {**_VISION, "model_type": "pixtral"},
        "image_token_index": 300,
    },
    "qwen3_vl": {
        "text_config": {**_TEXT, "model_type": "qwen3_vl_text", "rope_parameters": _MROPE},
        "vision_config": {
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
        },
        "image_token_id": 300,
    },
    "qwen2_5_vl": {
        "text_config": {**_TEXT, "model_type": "qwen2_5_vl_text", "rope_parameters": _MROPE},
        "vision_config": {
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
        },
        "image_token_id": 300,
    },
}


def wrapper(kind: str, folder: Path) -> Any:
    config = AutoConfig.for_model(kind, **WRAPPERS[kind])
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", WRAPPERS)
def test_text_goes_through_the_text_model_as_through_the_wrapper(kind: str, tmp_path: Path) -> None:
    whole = wrapper(kind, tmp_path / "vlm")
    ids = torch.arange(2, 30)[None]
    folder = resolve_model(tmp_path / "vlm")
    spec = read_spec(tmp_path / "vlm")
    assert spec.name == "vlm"
    assert spec.num_layers == 2
    assert not any("vision" in name or "visual" in name for name in spec.tensors)
    assert read_vocabulary(folder).size == VOCAB_SIZE
    assert shape_of(spec).stored_precision == "", "its pages are not mapped"
    with torch.no_grad():
        wanted = whole(input_ids=ids).logits
        assert torch.allclose(load_causal_lm(folder, dtype=torch.float32)(ids).logits, wanted, atol=1e-5)
    resident = ResidentTeacher(folder, dtype=torch.float32)
    streamed = StreamedTeacher(folder, dtype=torch.float32, device=torch.device("cpu"))
    assert torch.equal(resident.last_hidden_states([ids])[0], streamed.last_hidden_states([ids])[0])
    streamed.close()


def test_a_wrapper_whose_text_model_cannot_stand_alone_is_told_with_the_way_to_save_it(tmp_path: Path) -> None:
    folder = tmp_path / "vlm"
    wrapper("gemma3", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "paligemma"}))
    with pytest.raises(ModelError, match="wraps a text model") as caught:
        read_spec(folder)
    assert f"{folder}-text" in caught.value.todo
    # Of a text model that transformers does not have alone there is none to save.
    for kind in ("something_new", "emu3_text_model", "mllama_text_model"):
        config["text_config"]["model_type"] = kind
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="wraps a text model") as caught:
            read_spec(folder)
        assert caught.value.todo == "Choose another model."


def test_a_causal_model_whose_layers_are_described_in_its_text_model_is_told_as_a_wrapper(tmp_path: Path) -> None:
    """Fuyu's: its own class is a causal one, and its config.json says nothing of layers."""
    from transformers import FuyuConfig, FuyuForCausalLM

    sizes = {**_SIZES, "num_hidden_layers": 2, "vocab_size": VOCAB_SIZE, "model_type": "persimmon"}
    FuyuForCausalLM(FuyuConfig(text_config=sizes)).save_pretrained(tmp_path / "fuyu")
    tiny_tokenizer().save_pretrained(tmp_path / "fuyu")
    with pytest.raises(ModelError, match="wraps a text model") as caught:
        read_spec(tmp_path / "fuyu")
    command = caught.value.todo.partition(": ")[2]
    exec(shlex.split(command)[3], {})  # the way out
    assert read_spec(tmp_path / "fuyu-text").model_type == "persimmon"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
@pytest.mark.parametrize("name", ["gemma3", "llava"])
def test_an_adapter_of_the_text_model_is_loaded_into_the_wrapper(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder, given = tmp_path / "whole", torch.arange(2, 30)[None]
    wrapper(name, folder)
    text = resolve_model(folder)
    model = load_causal_lm(text, dtype=torch.float32)
    adapter = LowRankAdapter(model, AdapterShape(2, 4.0), device=torch.device("cpu"), seed=1)
    with torch.no_grad():
        for _, parameter in adapter.parameters():
            parameter.add_(0.2)
        beside = model(input_ids=given, use_cache=False).logits
    assert write_adapter(adapter, model, tmp_path / "adapter", base=str(folder), source=text) == []
    whole = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(whole, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=given, use_cache=False).logits, beside, rtol=1e-4, atol=1e-4)
    again = load_causal_lm(resolve_model(tmp_path / "adapter"), dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=given, use_cache=False).logits, beside, rtol=1e-3, atol=1e-3)
