import pytest
import torch

from tests import tiny


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_tiny_model_loads_and_says_something_of_its_own(architecture):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.tiny_model(architecture)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(tiny.tiny_texts(3)[2], return_tensors="pt").input_ids[:, : tiny.MAX_POSITIONS]
    assert len(tokenizer) == tiny.VOCAB_SIZE
    log_probs = model(ids).logits[..., : tiny.VOCAB_SIZE].log_softmax(-1)
    top = log_probs.max(-1).values.exp().mean()
    assert 0.02 < top < 0.95, "neither uniform nor certain"
    assert log_probs.argmax(-1).unique().numel() > 3


def test_texts_come_back_unchanged():
    tokenizer = tiny.tiny_tokenizer()
    for text in [*tiny.tiny_texts(), "ünïcödé 漢字\n\t  x"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_texts_differ():
    assert len(set(tiny.tiny_texts(40))) == 40
