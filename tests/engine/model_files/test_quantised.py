"""Quantised checkpoints, made here from the published layouts: each number is what the layout says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import ModelError
from engine.model_files.hub import resolve_model
from engine.model_files.spec import fingerprint, read_spec
from engine.models.checkpoint import Checkpoint
from engine.models.derive import derive_student
from engine.models.load import load_causal_lm
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from tests.tiny import VOCAB_SIZE, tiny_model

Tensors = dict[str, Tensor]
Quantiser = Callable[[str, Tensor], tuple[Tensors, Tensor]]
"""Of a matrix's name and numbers: the tensors that a library would write, and the numbers that they mean."""


def fp8_blocks(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """DeepSeek's and Qwen's: scales of blocks, here of 24 x 16, which do not fill the matrix."""
    scales = torch.rand(-(-weight.shape[0] // 24), -(-weight.shape[1] // 16)) + 0.5
    codes = weight.to(torch.float8_e4m3fn)
    spread = scales.repeat_interleave(24, 0).repeat_interleave(16, 1)[: weight.shape[0], : weight.shape[1]]
    return {name: codes, f"{name}_scale_inv": scales}, codes.float() * spread


def fp8_channels(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    scales = (torch.rand(weight.shape[0], 1) + 0.5).bfloat16()
    codes = weight.to(torch.float8_e4m3fn)
    beside = {f"{name.removesuffix('.weight')}.input_scale": torch.ones(1)}
    return {name: codes, f"{name}_scale": scales, **beside}, codes.float() * scales.float()


def fp8_tensor(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    codes = weight.to(torch.float8_e5m2)
    return {name: codes, f"{name}_scale": torch.tensor(0.75)}, codes.float() * 0.75


def int8_channels(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    scales = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scales).round().to(torch.int8)
    return {name: codes, f"{name}_scale": scales}, codes.float() * scales


def packed(codes: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Numbers into words of 32 bits along the last axis, number ``order[i]`` of each word at place i."""
    each = 32 // bits
    words = codes.reshape(*codes.shape[:-1], -1, each).to(torch.int64)
    places = order or tuple(range(each))
    total = sum(words[..., number] << (bits * place) for place, number in enumerate(places))
    assert isinstance(total, Tensor)
    return torch.from_numpy(total.numpy().astype(np.uint32).view(np.int32).copy())


def packed_groups(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    """compressed-tensors' pack-quantized, with zero points."""
    stem, (rows, columns) = name.removesuffix(".weight"), weight.shape
    codes, zeros = torch.randint(0, 16, weight.shape), torch.randint(0, 16, (rows, columns // 16))
    scales = torch.rand(rows, columns // 16) * 0.05
    tensors = {
        f"{stem}.weight_packed": packed(codes, 4),
        f"{stem}.weight_scale": scales,
        f"{stem}.weight_zero_point": packed(zeros.T.contiguous(), 4).T.contiguous(),
        f"{stem}.weight_shape": torch.tensor([rows, columns]),
    }
    return tensors, (codes - zeros.repeat_interleave(16, 1)).float() * scales.repeat_interleave(16, 1)


def gptq(name: str, weight: Tensor, more: int = 1) -> tuple[Tensors, Tensor]:
    stem, (rows, columns) = name.removesuffix(".weight"), weight.shape
    codes, zeros = torch.randint(0, 16, (rows, columns)), torch.randint(0, 16, (columns // 16, rows))
    scales, order = (torch.rand(columns // 16, rows) * 0.05).half(), torch.randperm(columns) // 16
    tensors = {
        f"{stem}.qweight": packed(codes, 4).T.contiguous(),  # down the columns of [in, out]
        f"{stem}.qzeros": packed(zeros, 4),
        f"{stem}.scales": scales,
        f"{stem}.g_idx": order.int(),
    }
    return tensors, (codes - (zeros + more)[order].T).float() * scales.float()[order].T


def gptq_v2(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    return gptq(name, weight, 0)


def awq(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    stem, (rows, columns) = name.removesuffix(".weight"), weight.shape
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    codes, zeros = torch.randint(0, 16, (columns, rows)), torch.randint(0, 16, (columns // 16, rows))
    scales = (torch.rand(columns // 16, rows) * 0.05).half()
    tensors = {
        f"{stem}.qweight": packed(codes, 4, order),
        f"{stem}.qzeros": packed(zeros, 4, order),
        f"{stem}.scales": scales,
    }
    values = (codes - zeros.repeat_interleave(16, 0)).float() * scales.float().repeat_interleave(16, 0)
    return tensors, values.T


def four_bits(kind: str, nested: bool) -> Quantiser:
    """Tensors as bitsandbytes writes them, and as it dequantizes them."""

    def quantise(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        from bitsandbytes import functional

        # In rows of a block: on a CPU the library dequantises narrower rows with the scales of other blocks.
        blocks = weight.reshape(-1, 64).contiguous()
        codes, state = functional.quantize_4bit(blocks, blocksize=64, quant_type=kind, compress_statistics=nested)
        meant = functional.dequantize_4bit(codes, state).view(weight.shape)
        state.shape = weight.shape
        tensors = {f"{name}.{end}": value for end, value in state.as_dict(packed=True).items()}
        return {name: codes, **tensors}, meant

    return quantise


def int8_rows(name: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    scales = weight.abs().amax(1)
    codes = (weight * 127 / scales[:, None]).round().to(torch.int8)
    stem = name.removesuffix(".weight")
    tensors = {name: codes, f"{stem}.SCB": scales, f"{stem}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, codes.float() * scales[:, None] / 127


LAYOUTS: dict[str, tuple[dict[str, Any], Quantiser]] = {
    "fp8 blocks": ({"quant_method": "fp8", "weight_block_size": [24, 16]}, fp8_blocks),
    "fp8 channels": ({"quant_method": "compressed-tensors", "format": "float-quantized"}, fp8_channels),
    "fp8 tensor": ({"quant_method": "fp8"}, fp8_tensor),
    "int8 channels": ({"quant_method": "compressed-tensors", "format": "int-quantized"}, int8_channels),
    "packed groups": ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, packed_groups),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True}, gptq),
    "gptq v2": ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}, gptq_v2),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}, awq),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, four_bits("nf4", False)),
    "nf4 nested": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, four_bits("nf4", True)),
    "fp4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, four_bits("fp4", False)),
    "bnb int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, int8_rows),
}


def quantised(layout: str, folder: Path) -> tuple[Path, Path]:
    """A quantised model, and a plain one with the numbers that its layout means."""
    quantization, quantise = LAYOUTS[layout]
    plain, small = folder / "plain", folder / "small"
    torch.manual_seed(0)
    for each in (plain, small):
        shutil.copytree(tiny_model("llama", num_layers=2), each)
    stored, meant = {}, {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if "_proj.weight" in name:
            tensors, meant[name] = quantise(name, tensor)
            stored |= {key: value.contiguous() for key, value in tensors.items()}
        else:
            stored[name] = meant[name] = tensor
    save_file({name: tensor.float().contiguous() for name, tensor in meant.items()}, plain / "model.safetensors")
    save_file(stored, small / "model.safetensors")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return small, plain


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_numbers_are_those_of_the_layout(layout: str, tmp_path: Path) -> None:
    small, plain = quantised(layout, tmp_path)
    checkpoint, wanted = Checkpoint(resolve_model(small)), Checkpoint(plain)
    assert checkpoint.tensors.keys() == wanted.tensors.keys()
    for name, info in wanted.tensors.items():
        assert checkpoint.tensors[name].shape == info.shape
        ours, theirs = torch.empty(info.shape), torch.empty(info.shape)
        checkpoint.read(name, ours)
        wanted.read(name, theirs)
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7), name
        part = torch.empty(info.numel // 3)
        checkpoint.read(name, part, first=5)
        assert torch.equal(part, ours.view(-1)[5 : 5 + len(part)]), name
    checkpoint.close()
    wanted.close()


@pytest.mark.parametrize("layout", ["fp8 blocks", "awq", "nf4 nested"])
def test_streamed_and_whole_are_the_same_and_the_plain_models(layout: str, tmp_path: Path) -> None:
    small, plain = quantised(layout, tmp_path)
    folder, ids = resolve_model(small), torch.randint(2, VOCAB_SIZE, (2, 20))
    spec = read_spec(small)
    assert spec.num_parameters == read_spec(plain).num_parameters
    assert "quantization_config" not in spec.config
    assert fingerprint(spec) != fingerprint(read_spec(plain))
    resident = ResidentTeacher(folder, dtype=torch.float32)
    streamed = StreamedTeacher(folder, dtype=torch.float32, device=torch.device("cpu"))
    states = resident.last_hidden_states([ids])[0]
    assert torch.equal(states, streamed.last_hidden_states([ids])[0])
    streamed.close()
    wanted = ResidentTeacher(plain, dtype=torch.float32).last_hidden_states([ids])[0]
    assert torch.allclose(states, wanted, rtol=1e-4, atol=1e-4)


def test_a_student_cut_from_a_quantised_teacher_is_a_plain_model(tmp_path: Path) -> None:
    small, _ = quantised("gptq", tmp_path)
    derive_student(read_spec(resolve_model(small)), 2, tmp_path / "student")
    spec, ids = read_spec(tmp_path / "student"), torch.arange(2, 20)[None]
    assert spec.path == tmp_path / "student"
    with torch.no_grad():
        ours = load_causal_lm(spec.path, dtype=torch.float32)(ids).logits
        wanted = load_causal_lm(resolve_model(small), dtype=torch.float32)(ids).logits
    assert (ours - wanted).abs().max() < 0.05 * wanted.std()


def test_mxfp4_is_what_transformers_makes_of_it() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from engine.model_files.headers import TensorInfo
    from engine.model_files.quantised import decoded_tensors

    blocks = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8)
    scales = torch.randint(120, 131, (3, 8, 2), dtype=torch.uint8)
    content = blocks.numpy().tobytes() + scales.numpy().tobytes()
    file = Path("experts")
    stored = {
        "experts.down_proj_blocks": TensorInfo((3, 8, 2, 16), "U8", 768, file, 0),
        "experts.down_proj_scales": TensorInfo((3, 8, 2), "U8", 48, file, 768),
    }
    ((name, info),) = decoded_tensors(stored, {"quant_method": "mxfp4"}, "here").items()
    assert name == "experts.down_proj"
    assert info.decoder is not None

    def read(_file: Path, offset: int, count: int) -> Any:
        return np.frombuffer(content, dtype=np.uint8)[offset : offset + count]

    wanted = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert info.shape == tuple(wanted.shape)
    assert torch.equal(torch.from_numpy(info.decoder.values(read, 0, info.numel)).view(info.shape), wanted)


def test_all_bytes_of_fp8_are_torchs_numbers() -> None:
    from engine.model_files.quantised import _TABLES

    for name, dtype in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        wanted = torch.arange(256, dtype=torch.uint8).view(dtype).float()
        assert torch.equal(torch.from_numpy(_TABLES[name]).nan_to_num(7), wanted.nan_to_num(7))


@pytest.mark.parametrize(
    ("quantization", "told"),
    [
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "quanto"}, "quanto"),
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({"quant_method": "awq", "version": "gemv"}, "gemv"),
        ({"quant_method": "fp8"}, "it has no known scales"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(quantization: Any, told: str, tmp_path: Path) -> None:
    layout = "awq" if quantization["quant_method"] == "awq" else "gptq"
    small, _ = quantised(layout, tmp_path)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    with pytest.raises(ModelError) as caught:
        read_spec(small)
    assert told in f"{caught.value.what} {caught.value.why}"
    assert "quantised" in caught.value.what


def test_tensors_of_another_layout_are_refused_and_not_guessed(tmp_path: Path) -> None:
    small, _ = quantised("fp8 blocks", tmp_path)
    tensors = load_file(small / "model.safetensors")
    name = next(name for name in tensors if name.endswith("scale_inv"))
    save_file(tensors | {name: torch.ones(7, 7)}, small / "model.safetensors")
    with pytest.raises(ModelError, match="in a way that cannot be read"):
        read_spec(small)
