"""Linear layers by oneDNN or in parts: numbers and gradients as torch computes them, chosen by processor and shape."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from engine.machine import hardware, products

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN"
)


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch):
    """No product is too small, on any processor."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_FEWEST_WEIGHTS", 1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    inner=st.integers(1, 70),
    outer=st.integers(1, 70),
    has_bias=st.booleans(),
    wants=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_values_and_gradients_are_those_of_torch(batch, inner, outer, has_bias, wants):
    given_ = [normal(*batch, inner), normal(outer, inner), normal(outer) if has_bias else None]
    found = []
    for function in (products.linear, functional.linear):
        inputs, weight, bias = (
            None if tensor is None else tensor.clone().requires_grad_(wanted)
            for tensor, wanted in zip(given_, wants, strict=True)
        )
        result = function(inputs, weight, bias)
        result.mul_(2.0)  # models change what a layer gives in place
        leaves = [tensor for tensor in (inputs, weight, bias) if tensor is not None and tensor.requires_grad]
        assert result.requires_grad is bool(leaves)
        gradients = torch.autograd.grad(result.square().sum(), leaves) if leaves else ()
        found.append([result.detach(), *gradients])
    for own, torchs in zip(*found, strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-4, atol=1e-4)


def test_forward_with_and_without_gradient_is_the_same_to_the_last_bit():
    inputs, weight = normal(3, 50, 64), normal(96, 64)
    with torch.no_grad():
        without = products.linear(inputs, weight)
    assert torch.equal(products.linear(inputs, weight.requires_grad_()).detach(), without)


def test_a_frozen_weight_keeps_no_inputs_for_the_backward_pass():
    kept: list[torch.Size] = []
    inputs, weight = normal(3, 50, 64).requires_grad_(), normal(96, 64)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda it: it):
        products.linear(inputs, weight)
    assert kept == [weight.shape]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [0, 1, 2, 4, 5])
def test_a_few_rows_are_multiplied_by_a_part_of_the_columns_in_each_thread(threads, rows, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for shape, outer in (((rows, 1, 24), 30), ((1, rows, 24), 31), ((rows, 24), 2)):
        inputs, weight, bias = normal(*shape), normal(outer, 24), normal(outer)
        for of_view in (weight, weight.T.contiguous().T, normal(outer, 30)[:, 3:27]):
            result = products.linear(inputs, of_view, bias)
            torch.testing.assert_close(result, functional.linear(inputs, of_view, bias), rtol=1e-4, atol=1e-4)
            assert result.is_contiguous()


def test_a_few_rows_are_one_batched_product(monkeypatch):
    monkeypatch.setattr(products, "_by_onednn", lambda *_: pytest.fail("not for oneDNN"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    calls = []
    own = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *words: calls.append(words[0].shape) or own(*words))
    products.linear(normal(3, 1, 8), normal(10, 8))
    assert calls == [(2, 5, 8)]


@pytest.mark.parametrize("columns", [1, 4096, 5000])
def test_a_result_goes_into_the_memory_that_is_given(columns):
    inputs, weight, result = normal(7, 24), normal(columns, 24), torch.full((7, columns), torch.nan)
    products.linear_into(result, inputs, weight)
    torch.testing.assert_close(result, inputs @ weight.T, rtol=1e-4, atol=1e-4)


def test_a_models_layers_keep_their_class_and_are_copied_with_it(monkeypatch):
    model = nn.Sequential(nn.Linear(8, 16), nn.Sequential(nn.Linear(16, 4)))
    names = list(model.state_dict())
    products.use_products(model)
    copied = copy.deepcopy(model)
    calls: list[torch.Size] = []
    own = products._by_onednn
    monkeypatch.setattr(
        products, "_by_onednn", lambda inputs, weight, bias: calls.append(weight.shape) or own(inputs, weight, bias)
    )
    with torch.no_grad():
        nn.init.zeros_(copied[0].weight)
        nn.init.zeros_(copied[0].bias)
        assert torch.equal(copied(normal(5, 8)), copied[1][0].bias.expand(5, 4)), "it multiplies by its own weights"
        model(normal(5, 8))
    assert calls == [(16, 8), (4, 16)] * 2
    assert list(model.state_dict()) == names
    assert type(model[0]).forward is nn.Linear.forward, "what is asked of layers that are quantised or cut"


def test_other_formats_and_layers_with_code_of_their_own_are_left_to_torch(monkeypatch):
    class Scaled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    layers = nn.ModuleList([Scaled(8, 8), nn.Linear(8, 8, dtype=torch.float64), nn.Linear(8, 8, dtype=torch.bfloat16)])
    products.use_products(layers)
    monkeypatch.setattr(products, "_product", lambda *_: pytest.fail("it is torch's"))
    for layer in layers:
        layer(normal(2, 8).to(layer.weight.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        products.linear(normal(2, 8), normal(4, 8))
    assert products.linear(torch.empty(2, 8, device="meta"), torch.empty(4, 8, device="meta")).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "is_faster"),
    [
        ("AMD EPYC", True),
        ("AMD Ryzen 7 5800H with Radeon Graphics", True),
        ("Hygon C86 7285 32-core Processor", True),
        ("AMD64 Family 25 Model 80 Stepping 0, AuthenticAMD", True),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", False),
        ("Intel64 Family 6 Model 154 Stepping 3, GenuineIntel", False),
        ("AMD64", False),  # what Windows calls any x86 processor
        ("x86_64", False),
        ("Apple M2", False),
        ("", False),
    ],
)
def test_choice_is_by_the_maker_of_the_processor(monkeypatch, name, is_faster):
    monkeypatch.undo()
    monkeypatch.setattr(hardware, "processor", lambda: (name, ()))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert products.onednn_is_faster.__wrapped__() is is_faster


def test_without_mkl_or_wide_registers_torch_multiplies(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(hardware, "processor", lambda: ("AMD EPYC", ()))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not products.onednn_is_faster.__wrapped__()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not products.onednn_is_faster.__wrapped__()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_many_rows_in_a_format_without_kernels_are_multiplied_in_float32(dtype, has_bias, monkeypatch):
    monkeypatch.setattr(products, "_lacks_kernels", lambda weight: weight.dtype == dtype)
    monkeypatch.setattr(products, "_COLUMNS", 7)
    layer = nn.Linear(24, 30, bias=has_bias, dtype=dtype)
    products.use_float32_for_many_rows(layer)
    many, few = (normal(2, rows, 24).to(dtype) for rows in (8, 7))
    exact = functional.linear(many.double(), *(each.double() for each in layer.parameters())).to(dtype)
    # Rounded once, where float32 and float64 may fall on two sides of a border.
    assert (layer(many) - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps
    assert torch.equal(layer(few), functional.linear(few, *layer.parameters())), "reading the weights takes the time"
    assert layer(many).dtype == dtype
    assert layer.weight.dtype == dtype


@pytest.mark.parametrize("is_loaded_by_us", [False, True])
def test_layers_that_compute_with_products_can_read_in_float32_too(is_loaded_by_us, monkeypatch):
    monkeypatch.setattr(products, "_lacks_kernels", lambda weight: weight.dtype == torch.bfloat16)
    layer = nn.Linear(24, 30, dtype=torch.bfloat16)
    if is_loaded_by_us:
        products.use_products(layer)
    products.use_float32_for_many_rows(layer)
    products.use_products(layer)  # again, as a model that is loaded twice over: nothing is taken back
    assert layer.forward.__func__ is products._forward_in_float32


def test_layers_in_float32_are_left_as_they_are():
    layer = nn.Linear(24, 30)
    products.use_float32_for_many_rows(layer)
    assert "forward" not in layer.__dict__


def test_torch_is_asked_whether_it_has_kernels(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    for dtype, question in asked.items():
        expected = not getattr(torch.ops.mkldnn, question)()
        assert products._lacks_kernels(torch.zeros(2, 2, dtype=dtype)) is expected
    assert not products._lacks_kernels(torch.zeros(2, 2))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NEON")
    assert not products._lacks_kernels(torch.zeros(2, 2, dtype=torch.float16)), "it was measured on x86 alone"
