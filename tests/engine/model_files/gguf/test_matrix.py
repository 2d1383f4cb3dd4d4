"""Architectures × formats × whole and streamed × tied, untied and padded: each file is the model that it was made of.

The expected numbers come without our reader: the folder's own weights, rounded as the file's type rounds them.
The package quantises no type of the K family, so the blocks of Q4_K are made here from ggml's description.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from engine.export import write_gguf
from engine.model_files.gguf.architectures import ARCHITECTURES
from engine.model_files.spec import read_spec
from engine.models.load import load_causal_lm
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from tests.engine.export.test_gguf_file import _SHARED, MODELS
from tests.engine.model_files.gguf.exact_models import save_exact
from tests.tiny import VOCAB_SIZE

pytestmark = pytest.mark.slow

IDS = torch.randint(2, VOCAB_SIZE, (2, 24), generator=torch.Generator().manual_seed(1))
_WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2}
_PADDED = {"vocab_size": VOCAB_SIZE + 24}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, untied": ("llama", {"tie_word_embeddings": False}),
    "llama, tied, padded": ("llama", {"tie_word_embeddings": True, **_PADDED}),
    "llama, untied, padded": ("llama", {"tie_word_embeddings": False, **_PADDED}),
    "mistral, untied": ("mistral", {"tie_word_embeddings": False}),
    "qwen2, tied, padded": ("qwen2", {"tie_word_embeddings": True, **_PADDED}),
    "qwen2, untied": ("qwen2", {"tie_word_embeddings": False, "vocab_size": VOCAB_SIZE}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3, untied, padded": ("qwen3", {"tie_word_embeddings": False, **_PADDED}),
    "gemma, tied": ("gemma", {"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2, tied": ("gemma2", {"query_pre_attn_scalar": 64}),
    "gemma3, tied, padded": ("gemma3_text", {"query_pre_attn_scalar": 64, **_PADDED}),
    "phi3, untied": ("phi3", {"num_key_value_heads": 4}),
    "gpt2, tied": ("gpt2", {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_inner": 256}),
    "gpt2, tied, padded": ("gpt2", {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_inner": 256, **_PADDED}),
    "gpt_neox, untied": ("gpt_neox", {"tie_word_embeddings": False}),
    "gpt_neox, untied, padded": ("gpt_neox", {"tie_word_embeddings": False, **_PADDED}),
}
_TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def q4_k(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rows of a multiple of 256 numbers as blocks of Q4_K.

    Source: ggml, ``ggml-quants.c``, ``quantize_row_q4_K_ref``: two float16, twelve bytes with eight scales and eight
    offsets of six bits, and 128 bytes whose lower halves are 32 numbers and whose upper halves are the next 32.
    """
    blocks = values.reshape(-1, 8, 32)
    low = np.minimum(blocks.min(-1), 0)
    scales, offsets = (blocks.max(-1) - low) / 15, -low
    d = (scales.max(-1, keepdims=True) / 63).astype(np.float16)
    dmin = (offsets.max(-1, keepdims=True) / 63).astype(np.float16)
    with np.errstate(all="ignore"):
        sc = np.nan_to_num(np.rint(scales / d.astype(np.float32))).clip(0, 63).astype(np.uint8)
        mn = np.nan_to_num(np.rint(offsets / dmin.astype(np.float32))).clip(0, 63).astype(np.uint8)
        step = (d.astype(np.float32) * sc)[..., None]
        shift = (dmin.astype(np.float32) * mn)[..., None]
        q = np.nan_to_num(np.rint((blocks + shift) / step)).clip(0, 15).astype(np.uint8)
    packed = np.zeros((len(blocks), 12), dtype=np.uint8)
    packed[:, 0:4] = sc[:, :4] | (sc[:, 4:] >> 4 << 6)
    packed[:, 4:8] = mn[:, :4] | (mn[:, 4:] >> 4 << 6)
    packed[:, 8:12] = (sc[:, 4:] & 15) | (mn[:, 4:] & 15) << 4
    halves = q.reshape(-1, 4, 2, 32)
    nibbles = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(-1, 128)
    parts = [d.view(np.uint8).reshape(-1, 2), dmin.view(np.uint8).reshape(-1, 2), packed, nibbles]
    return np.concatenate(parts, axis=1).reshape(*values.shape[:-1], -1)


def rounded(values: NDArray[np.float32], weight_type: str) -> NDArray[np.float32]:
    """Numbers as a file of a type gives them back."""
    if values.ndim < 2:
        return values
    kind = gguf.GGMLQuantizationType[weight_type.upper()]
    data = q4_k(values) if weight_type == "q4_k" else gguf.quants.quantize(values, kind)
    found: NDArray[np.float32] = gguf.quants.dequantize(data, kind)
    return found.reshape(values.shape)


def as_stored(model: Any, weight_type: str) -> Any:
    """The model, its weights rounded as a file of a type keeps them."""
    for name, parameter in model.named_parameters():
        turned = name.endswith(_TURNED)
        values = (parameter.detach().T if turned else parameter.detach()).contiguous().numpy()
        values = rounded(values, weight_type)
        parameter.data = torch.from_numpy(np.ascontiguousarray(values.T if turned else values))
    return model


def with_q4_k(file: Path, out: Path) -> Path:
    """A GGUF file whose matrices are Q4_K."""
    whole = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(out, whole.fields["general.architecture"].contents())
    for field in whole.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in whole.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim > 1 and values.shape[-1] % 256 == 0:
            writer.add_tensor(tensor.name, q4_k(values), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def folder_of(case: str, folder: Path) -> Path:
    """A model whose numbers are exact in float16, with weights large enough that mistakes show."""
    kind, more = CASES[case]
    given = MODELS["gpt2"] if kind == "gpt2" else _SHARED | MODELS.get(kind, {}) | _WIDE
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**given, **more}), dtype=torch.float32)
    return save_exact(model, folder)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()[..., :VOCAB_SIZE]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["safetensors", "f16", "q8_0", "q4_k"])
def test_a_file_whole_and_streamed_is_the_model_in_its_types_rounding(form: str, case: str, tmp_path: Path) -> None:
    folder = folder_of(case, tmp_path / "model")
    wanted = load_causal_lm(folder, dtype=torch.float32)
    path = folder
    if form != "safetensors":
        path = tmp_path / "model.gguf"
        write_gguf(folder, path, weight_type="f16" if form == "q4_k" else form)
        path = with_q4_k(path, tmp_path / "model-q4_k.gguf") if form == "q4_k" else path
        as_stored(wanted, form)
    spec = read_spec(path)
    assert spec.tied_embeddings == (", tied" in case)
    assert spec.vocab_size == VOCAB_SIZE + 24 * ("padded" in case)
    found = logits(load_causal_lm(spec.path, dtype=torch.float32))
    expected = logits(wanted)
    assert (found - expected).abs().max() < 1e-3 * expected.std()
    for dtype in (torch.float32, torch.bfloat16):
        whole = ResidentTeacher(spec.path, dtype=dtype)
        streamed = StreamedTeacher(spec.path, dtype=dtype, device=torch.device("cpu"))
        states = whole.last_hidden_states([IDS])[0]
        assert torch.equal(states, streamed.last_hidden_states([IDS])[0])
        assert torch.equal(whole.logits(states[0]), streamed.logits(states[0]))
        streamed.close()


def test_the_blocks_made_here_are_those_of_ggml() -> None:
    values = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    assert np.abs(rounded(values, "q4_k") - values).max() < 0.35
    assert np.abs(rounded(values, "q4_k") - values).mean() < 0.1


def test_every_architecture_that_is_written_is_in_the_matrix() -> None:
    assert {kind for kind, _ in CASES.values()} == set(ARCHITECTURES)
