from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig

from engine.machine.allocator import allocator_environment
from engine.model_files.spec import read_spec
from engine.models.core import find_core
from engine.models.linears import decoder_linears
from engine.models.meta import build_on_meta
from engine.models.quantize import Method, QuantizedLinear, dequantize, quantize, swap_linear_layers
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from tests.engine.models.architectures import ARCHITECTURES, VOCAB_SIZE, tiny_architecture
from tests.engine.models.equality import assert_same_numbers
from tests.engine.models.every_architecture import EVERY, tiny_model_of

METHODS: list[Method] = ["int8", "nf4"]
ERRORS = {"int8": 0.01, "nf4": 0.11}  # of a random matrix; published: 0.8 % and 9 %


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(64, 128), (507, 123), (1, 64), (4096, 96), (30, 34)])
def test_unpacked_weights_are_as_near_as_the_format_allows(method: Method, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, scales = quantize(weight, method)
    back = dequantize(codes, scales, method, shape, torch.float32)
    assert back.shape == weight.shape
    assert (back - weight).norm() / weight.norm() < ERRORS[method]
    assert codes.numel() == (weight.numel() if method == "int8" else (weight.numel() + 1) // 2)


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_quantised_in_pieces_is_the_one_quantised_whole(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn((300, 128), generator=torch.Generator().manual_seed(0))
    whole = quantize(weight, method)
    monkeypatch.setattr("engine.models.quantize._PIECE_ELEMENTS", 1000)
    pieces = quantize(weight, method)
    assert all(torch.equal(one, other) for one, other in zip(whole, pieces, strict=True))


QUICK = ("llama", "gpt_neox", "gpt2", "mixtral", "falcon", "mamba")
OTHERS = [name for name in (*ARCHITECTURES, *EVERY) if name not in QUICK]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_streamed_and_quantised_equals_resident_and_quantised(name: str, method: Method) -> None:
    """Mamba's code multiplies by the weights of some layers itself."""
    if name in EVERY and EVERY[name][0] not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    folder = tiny_architecture(name) if name in ARCHITECTURES else tiny_model_of(name)
    ids = torch.randint(0, VOCAB_SIZE, (3, 17), generator=torch.Generator().manual_seed(0))
    cpu = torch.device("cpu")
    streamed = StreamedTeacher(folder, dtype=torch.float32, device=cpu, quantization=method)
    resident = ResidentTeacher(folder, dtype=torch.float32, device=cpu, quantization=method)
    exact = ResidentTeacher(folder, dtype=torch.float32, device=cpu)
    ours, theirs = streamed.last_hidden_states([ids])[0], resident.last_hidden_states([ids])[0]
    assert_same_numbers(ours, theirs, what="hidden states")
    assert_same_numbers(streamed.logits(ours[0]), resident.logits(theirs[0]), what="logits")
    assert not torch.equal(ours, exact.last_hidden_states([ids])[0]), "nothing was quantised"
    streamed.close()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_layer_that_an_adapter_changes_can_be_quantised(name: str) -> None:
    kind, settings = ARCHITECTURES[name]
    config = AutoConfig.for_model(kind, **{"vocab_size": VOCAB_SIZE, **settings})
    model = build_on_meta(config, dtype=torch.float32, trust_remote_code=False)
    core = find_core(model)
    linears = {linear.name for linear in decoder_linears(model)}
    swapped = {f"{core.layers_prefix}.{name}" for name in swap_linear_layers(core.layers, "int8")}
    assert linears
    assert linears <= swapped


def test_a_quantised_layer_keeps_no_copy_of_the_weight_it_replaced() -> None:
    layer = QuantizedLinear(nn.Linear(128, 64), "nf4")
    held = sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
    assert held == 64 * 4, "only the bias is there before a weight is packed"


@pytest.mark.parametrize("method", METHODS)
def test_a_streamed_layer_is_never_whole_before_it_is_quantised(method: Method) -> None:
    """Weights pass through one slot, one after the other: it has room for the largest alone."""
    folder = tiny_architecture("llama")
    teacher = StreamedTeacher(folder, dtype=torch.float32, device=torch.device("cpu"), quantization=method, check=False)
    largest = max(
        tensor.numel
        for name, tensor in read_spec(folder).tensors.items()
        if name.startswith("model.layers.") and len(tensor.shape) == 2
    )
    assert [slot.is_held for slot in teacher._reader.slots] == [False]
    assert teacher._reader.slot_bytes == 4 * largest
    teacher.last_hidden_states([torch.arange(8)[None]])
    assert 0 < teacher._reader.ahead_bytes < 4 * sum(read_spec(folder).layer_parameters)
    teacher.save_memory(True)
    assert teacher.saved_bytes >= teacher._reader.ahead_bytes


# Blocks below 1 MiB lie on the heap, between each other: as in a phase that hands memory back. The result (29 or 59 MB)
# is large beside the pages of code that are touched for the first time (8 MB on some processors).
PEAK = """
import gc, re, sys, torch
from pathlib import Path
from engine.models import quantize
def kib(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
torch.set_num_threads(1)
weight = torch.randn(8192, 7168).bfloat16()
quantize.quantize(weight[:36], sys.argv[1])
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
before = kib("VmRSS")
codes, scales = quantize.quantize(weight, sys.argv[1])
print((kib("VmHWM") - before) * 1024 / (codes.nbytes + scales.nbytes))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are asked of Linux")
@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_quantising_takes_little_more_than_its_result(method: str) -> None:
    environment = {**os.environ, **allocator_environment(keep=False)}
    command = [sys.executable, "-c", PEAK, method]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2
