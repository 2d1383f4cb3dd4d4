"""Headers that end early or lie: one sentence each, and no memory taken for what they announce."""

from __future__ import annotations

import contextlib
import importlib
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from engine.cli import distill
from engine.errors import ModelError
from engine.model_files.gguf.header import read_header
from engine.model_files.gguf.tokenizer import write_tokenizer
from engine.model_files.gguf.values import can_dequantize, dequantize
from engine.model_files.hub import resolve_model
from engine.model_files.spec import read_spec
from engine.models.checkpoint import Checkpoint
from engine.models.load import load_causal_lm
from tests.engine.model_files.gguf.test_read_gguf import gguf_of

HUGE = 2**63


def header(tensors: int = 0, keys: int = 0, *, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dims = struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", each) for each in shape)
    return struct.pack("<Q", len(name)) + name + dims + struct.pack("<IQ", kind, offset)


LIES = {
    "no bytes": b"",
    "another file": b"PK\x03\x04" + bytes(40),
    "version 1": header(version=1),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "2^63 tensors": header(tensors=HUGE) + bytes(64),
    "2^63 keys": header(keys=HUGE) + bytes(64),
    "a key of 2^63 bytes": header(keys=1, rest=struct.pack("<Q", HUGE) + bytes(64)),
    "a text of 2^63 bytes": header(keys=1, rest=key("a", 8, struct.pack("<Q", HUGE)) + bytes(64)),
    "an array of 2^63 numbers": header(keys=1, rest=key("a", 9, struct.pack("<IQ", 4, HUGE)) + bytes(64)),
    "an array of 2^63 texts": header(keys=1, rest=key("a", 9, struct.pack("<IQ", 8, HUGE)) + bytes(64)),
    "an array of arrays": header(keys=1, rest=key("a", 9, struct.pack("<IQIQ", 9, 1, 9, 1)) + bytes(64)),
    "an unknown kind": header(keys=1, rest=key("a", 99, b"") + bytes(64)),
    "a name of 2^63 bytes": header(tensors=1, rest=struct.pack("<Q", HUGE) + bytes(64)),
    "2^31 dimensions": header(tensors=1, rest=struct.pack("<Q", 1) + b"a" + struct.pack("<I", 2**31) + bytes(64)),
    "a side of 2^63": header(tensors=1, rest=tensor(b"a", (HUGE, HUGE), 0, 0) + bytes(64)),
    "a side of 0": header(tensors=1, rest=tensor(b"a", (0, 4), 0, 0) + bytes(64)),
    "a row that no blocks fill": header(tensors=1, rest=tensor(b"a", (33, 4), 8, 0) + bytes(999)),
    "an unknown type": header(tensors=1, rest=tensor(b"a", (32,), 12345, 0) + bytes(999)),
    "an offset outside": header(tensors=1, rest=tensor(b"a", (32,), 0, HUGE) + bytes(999)),
    "a tensor beyond the end": header(tensors=1, rest=tensor(b"a", (320,), 0, 0) + bytes(64)),
    "a tensor twice": header(tensors=2, rest=2 * tensor(b"a", (4,), 0, 0) + bytes(999)),
    "an alignment of 0": header(keys=1, rest=key("general.alignment", 4, struct.pack("<I", 0)) + bytes(64)),
    "an alignment of 3": header(keys=1, rest=key("general.alignment", 4, struct.pack("<I", 3)) + bytes(64)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused_and_nothing_is_allocated(lie: str, tmp_path: Path) -> None:
    can_dequantize(0)  # imports are not counted
    importlib.import_module("engine.model_files.gguf.folder")
    file = tmp_path / "model.gguf"
    file.write_bytes(LIES[lie])
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as caught:
            read_spec(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert str(file) in caught.value.what
    assert caught.value.todo


def test_the_program_ends_with_the_code_of_a_wrong_request(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "model.gguf").write_bytes(LIES["2^63 tensors"])
    (tmp_path / "text.txt").write_text("words\n" * 100)
    words = ["--teacher", tmp_path / "model.gguf", "--student", "from-teacher", "--data", tmp_path / "text.txt"]
    assert distill.main([*map(str, words), "--output_dir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "damaged GGUF header" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "lie", ["block_count", "embedding_length", "attention.head_count", "feed_forward_length", "attention.head_count_kv"]
)
@pytest.mark.parametrize("value", [0, 1, 5, 2**31, 2**32 - 1])
def test_a_lie_about_the_model_is_told_of_the_file_and_not_of_a_folder_that_stands_for_it(
    lie: str, value: int, tmp_path: Path
) -> None:
    _, file = gguf_of("llama", tmp_path, "q8_0")
    data = file.read_bytes()
    place = data.index(f"llama.{lie}".encode()) + len(f"llama.{lie}") + 4
    file.write_bytes(data[:place] + struct.pack("<I", value) + data[place + 4 :])
    with pytest.raises(ModelError) as caught:
        load_causal_lm(read_spec(file).path, dtype=torch.float32)
    assert str(file) in caught.value.paragraph(), caught.value.paragraph()


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    _, file = gguf_of("llama", tmp_path, "q8_0")
    data = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in sorted(random.Random(0).sample(range(len(data)), 60)):
        cut.write_bytes(data[:length])
        with pytest.raises(ModelError):
            read_spec(cut)


def test_a_header_with_wrong_bytes_is_read_or_refused(tmp_path: Path) -> None:
    """Nothing but a refusal, whatever the byte."""
    _, file = gguf_of("llama", tmp_path, "q8_0")
    data = file.read_bytes()
    end = min(each.offset for each in read_header(file).tensors.values())
    broken, draw = tmp_path / "broken.gguf", random.Random(1)
    read = 0
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(4, end)] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        broken.write_bytes(changed)
        try:
            checkpoint = Checkpoint(resolve_model(broken))
        except ModelError:
            continue
        read += 1
        for name, info in checkpoint.tensors.items():
            checkpoint.read(name, torch.empty(info.numel))
        checkpoint.close()
    assert 0 < read < 150


@pytest.mark.parametrize("name", [each.name for each in gguf.GGMLQuantizationType])
def test_a_type_is_dequantised_as_the_package_does_or_refused(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 256, size * 40, dtype=np.uint8)
    try:
        with np.errstate(all="ignore"):  # random bytes make scales of NaN
            wanted = gguf.quants.dequantize(data.reshape(-1, size), kind)
    except NotImplementedError:
        assert name == "F64" or not can_dequantize(kind)
        return
    found = dequantize(data, kind)
    assert found.dtype == np.float32
    assert found.shape == (40 * elements,)
    assert np.array_equal(found.view(np.uint32), np.asarray(wanted, dtype=np.float32).reshape(-1).view(np.uint32))


def split_file(file: Path, folder: Path, stem: str) -> list[str]:
    """Write a GGUF file's tensors as two parts, as llama.cpp's gguf-split does; returns the parts' names."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = gguf.GGUFReader(file)
    names = [f"{stem}-0000{number}-of-00002.gguf" for number in (1, 2)]
    halves = (whole.tensors[:10], whole.tensors[10:])
    for name, tensors in zip(names, halves, strict=True):
        writer = gguf.GGUFWriter(folder / name, "llama")
        if name == names[0]:
            for field in whole.fields.values():
                if field.name.startswith("GGUF.") or field.name == "general.architecture":
                    continue
                inner = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        writer.add_uint16("split.count", 2)
        for each in tensors:
            writer.add_tensor(each.name, np.array(each.data), raw_dtype=each.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return names


def test_a_split_file_is_one_model_and_a_missing_part_is_named(tmp_path: Path) -> None:
    _, file = gguf_of("llama", tmp_path)
    names = split_file(file, tmp_path, "m")
    first, second = (tmp_path / name for name in names)
    assert read_spec(first).tensors.keys() == read_spec(file).tensors.keys()
    assert read_spec(second).num_parameters == read_spec(file).num_parameters
    second.unlink()
    with pytest.raises(ModelError, match=r"are missing: m-00002-of-00002\.gguf"):
        read_spec(first)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("key", ["model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id"])
@pytest.mark.parametrize("wrong", ["x", -1, float("nan"), [], ["a"] * 4, [1] * 4, [float("nan")] * 4, None], ids=repr)
def test_a_lie_about_the_tokenizer_is_refused_or_harmless(model: str, key: str, wrong: Any, tmp_path: Path) -> None:
    told = {"model": model, "pre": "gpt-2", "tokens": ["a", "b", "ab", "<0x0A>"], "scores": [0.0, -1.0, -2.0, 0.0]}
    told |= {"token_type": [1, 1, 1, 6], "merges": ["a b"], "bos_token_id": 0}
    metadata = {f"tokenizer.ggml.{name}": value for name, value in {**told, key: wrong}.items() if value is not None}
    with contextlib.suppress(ModelError):
        write_tokenizer(metadata, tmp_path, "file.gguf")
        Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
