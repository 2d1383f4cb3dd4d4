import pytest
import torch
from torch import nn
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

from engine.errors import ModelError
from engine.machine import products
from engine.models.core import find_core, head_is_linear, last_hidden_states, logits_of
from engine.models.load import load_causal_lm
from engine.models.slices import slice_resident_head
from tests.tiny import ARCHITECTURES, VOCAB_SIZE, tiny_model


def some_ids(batch=3, length=17, seed=0):
    return torch.randint(2, VOCAB_SIZE, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return load_causal_lm(tiny_model(request.param), dtype=torch.float32)


def test_core_and_head_together_are_the_model(model):
    ids = some_ids()
    with torch.no_grad():
        hidden_states = last_hidden_states(model, ids)
        assert hidden_states.shape == (3, 17, 32)
        logits = logits_of(model, hidden_states.flatten(0, 1)).view(3, 17, -1)
        expected = model(ids, use_cache=False).logits
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_padding_on_the_right_changes_nothing_before_it(model):
    ids = some_ids()
    padded = torch.nn.functional.pad(ids, (0, 9), value=1)
    with torch.no_grad():
        alone, beside = last_hidden_states(model, ids), last_hidden_states(model, padded)[:, :17]
    torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-5)


def test_gradients_through_core_and_head_are_the_models(model):
    ids = some_ids(2, 9)
    model.train()
    weights = torch.randn(2, 9, model.config.vocab_size, generator=torch.Generator().manual_seed(1))

    def gradients(logits):
        model.zero_grad()
        (logits * weights).sum().backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    expected = gradients(model(ids, use_cache=False).logits)
    found = gradients(logits_of(model, last_hidden_states(model, ids).flatten(0, 1)).view(2, 9, -1))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_model_is_as_before_after_each_call_even_after_an_error(model):
    core = find_core(model).core
    last_hidden_states(model, some_ids())
    logits_of(model, torch.zeros(4, 32))
    with pytest.raises(IndexError):
        last_hidden_states(model, torch.tensor([[10_000]]))
    assert "forward" not in core.__dict__


def test_a_forward_that_was_replaced_before_is_put_back(model):
    core = find_core(model).core
    own = core.forward
    core.forward = own
    try:
        logits_of(model, torch.zeros(4, 32))
        assert core.__dict__["forward"] is own
    finally:
        del core.forward


def test_the_core_holds_the_decoder_layers(model):
    found = find_core(model)
    assert len(found.layers) == 4
    assert model.get_submodule(found.layers_prefix) is found.layers
    assert found.core is not model
    assert find_core(model) is found


def test_a_plain_linear_head_is_known_as_one_and_a_softcapped_is_not(model):
    found = head_is_linear(model)
    if model.config.model_type == "gemma2":
        assert found is None, "the softcap would be lost"
        return
    assert found is not None
    weight, bias = found
    assert weight is model.get_output_embeddings().weight
    assert bias is None


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits * 1.001,
        lambda logits: 500.0 * torch.tanh(logits / 500.0),
        lambda logits: logits + 0.001,
    ],
)
def test_a_head_that_does_a_little_more_is_not_linear(change):
    model = load_causal_lm(tiny_model("llama"), dtype=torch.float32)
    own = model.forward

    def forward(*args, **kwargs):
        output = own(*args, **kwargs)
        output.logits = change(output.logits)
        return output

    assert head_is_linear(model) is not None
    model.forward = forward
    assert head_is_linear(model) is None


def test_a_head_with_a_bias_is_linear():
    model = load_causal_lm(tiny_model("llama"), dtype=torch.float32)
    model.lm_head.bias = nn.Parameter(torch.randn(VOCAB_SIZE))
    found = head_is_linear(model)
    assert found is not None
    assert found[1] is model.lm_head.bias


@pytest.mark.parametrize("by_onednn", [False, True])
def test_a_wide_head_is_linear_with_any_kernel_and_in_slices(monkeypatch, by_onednn):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: by_onednn)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=576, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    assert head_is_linear(model) is not None, "torch's own kernels in the model"
    products.use_products(model)
    assert head_is_linear(model) is not None
    slice_resident_head(model)
    assert head_is_linear(model) is not None


def test_a_model_without_a_head_is_refused():
    model = AutoModel.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    with pytest.raises(ModelError, match="no head above"):
        find_core(model)


def test_a_model_that_runs_its_core_twice_is_refused():
    class Twice(LlamaForCausalLM):
        def forward(self, input_ids, **kwargs):
            super().forward(input_ids, **kwargs)
            return super().forward(input_ids, **kwargs)

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=1
    )
    model = Twice(config)
    with pytest.raises(ModelError, match="2 times"):
        last_hidden_states(model, torch.tensor([[3, 4]]))
