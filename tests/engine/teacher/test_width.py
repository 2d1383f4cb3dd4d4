"""Narrower students, on real tiny models."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import ModelError
from engine.model_files.narrow import Kept, Width, width_of
from engine.model_files.spec import read_spec
from engine.models.derive import derive_student
from engine.models.load import load_causal_lm
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from engine.planner.shape import shape_of
from engine.teacher.depth import Piece
from engine.teacher.width import choose_width
from tests.engine.models.architectures import VOCAB_SIZE, tiny_architecture

CPU = torch.device("cpu")
NARROWABLE = [
    "llama",
    "qwen2",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "gemma2", "mistral")),
]


def pieces() -> list[Piece]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for lengths in ([20, 13], [9, 17]):
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        ids = torch.randint(3, VOCAB_SIZE, tuple(real.shape), generator=generator).masked_fill(~real, 1)
        found.append(Piece(ids, real.clone(), real))
    return found


def chosen(folder: Path, width: Width, layers: list[int], *, streamed: bool = False) -> dict[int, Kept]:
    teacher = (StreamedTeacher if streamed else ResidentTeacher)(folder, dtype=torch.float32, device=CPU)
    spec = read_spec(folder)
    outputs = [None] * spec.num_layers
    try:
        return choose_width(
            teacher, pieces(), layers, width, head_dim=spec.head_dim, outputs=outputs, safe_point=lambda: None
        )
    finally:
        teacher.close()


@pytest.mark.parametrize("name", NARROWABLE)
def test_a_narrow_student_is_its_teacher_without_the_other_neurons_and_heads(name: str, tmp_path: Path) -> None:
    folder = tiny_architecture(name)
    spec = read_spec(folder)
    width = width_of(spec, 0.5)
    layers = [0, spec.num_layers - 1]
    parts = chosen(folder, width, layers)
    derive_student(read_spec(folder), layers, tmp_path, width=width, parts=parts)
    student = load_causal_lm(tmp_path, dtype=torch.float32)
    derive_student(read_spec(folder), layers, tmp_path / "wide")
    wide = load_causal_lm(tmp_path / "wide", dtype=torch.float32)
    in_group = spec.num_heads // spec.num_kv_heads
    with torch.no_grad():
        for index, layer in zip(layers, wide.model.layers, strict=True):
            gone = torch.ones(spec.intermediate_size, dtype=torch.bool)
            gone[list(parts[index].neurons)] = False
            layer.mlp.down_proj.weight[:, gone] = 0.0
            heads = torch.ones(spec.num_kv_heads, dtype=torch.bool)
            heads[list(parts[index].kv_heads)] = False
            layer.self_attn.o_proj.weight[:, heads.repeat_interleave(in_group * spec.head_dim)] = 0.0
    ids = torch.randint(3, VOCAB_SIZE, (2, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, wide(ids).logits, rtol=1e-4, atol=1e-4)
    narrow = read_spec(tmp_path)
    assert (narrow.intermediate_size, narrow.num_kv_heads, narrow.num_heads) == (
        width.neurons,
        width.kv_heads,
        width.heads,
    )
    predicted = shape_of(spec).with_width(width.neurons, width.heads, width.kv_heads).with_layers(2)
    assert predicted.parameters == pytest.approx(narrow.num_parameters, rel=0.02)


@pytest.mark.parametrize("name", ["llama"])
def test_streamed_and_resident_keep_the_same(name: str) -> None:
    folder = tiny_architecture(name)
    width = width_of(read_spec(folder), 0.5)
    resident, streamed = (chosen(folder, width, [0, 2], streamed=streamed) for streamed in (False, True))
    assert resident == streamed == chosen(folder, width, [0, 2])


def test_neurons_that_do_nothing_go_first(tmp_path: Path) -> None:
    model = load_causal_lm(tiny_architecture("llama"), dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, :20] = 0.0
        model.model.layers[0].mlp.gate_proj.weight[30:34] = 0.0
    model.save_pretrained(tmp_path)
    size = read_spec(tmp_path).intermediate_size
    assert size >= 48
    kept = chosen(tmp_path, Width(size - 24, 2, 4), [0])[0]
    assert kept.neurons == (*range(20, 30), *range(34, size))


def test_what_cannot_be_narrowed_is_refused_by_name() -> None:
    for name in ("gpt2", "gpt_neox", "phi3", "mixtral"):
        with pytest.raises(ModelError, match="cannot be made narrower"):
            width_of(read_spec(tiny_architecture(name)), 0.5)


def test_a_narrow_student_is_written_where_files_cannot_be_mapped(monkeypatch, tmp_path):
    folder = tiny_architecture("llama")
    spec = read_spec(folder)
    width = width_of(spec, 0.5)
    kept = chosen(folder, width, [0, 1])
    derive_student(spec, [0, 1], tmp_path / "mapped", width=width, parts=kept)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(np, "memmap", refuse)
    monkeypatch.setattr(mmap, "mmap", refuse)
    derive_student(spec, [0, 1], tmp_path / "read", width=width, parts=kept)
    name = "model.safetensors"
    assert (tmp_path / "read" / name).read_bytes() == (tmp_path / "mapped" / name).read_bytes()
