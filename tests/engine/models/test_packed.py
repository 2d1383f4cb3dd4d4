from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from engine.models.borders import positions_in
from engine.models.core import last_hidden_states
from engine.models.load import load_causal_lm
from engine.models.packed import can_be_cut, packed_hidden_states
from engine.planner.shape import CARRIES_A_STATE
from engine.student.learner import _enable_checkpointing
from tests.engine.models.architectures import ARCHITECTURES, NEWER, VOCAB_SIZE, tiny_architecture
from tests.engine.models.equality import assert_same_numbers

ROWS = ([9, 14, 12], [30], [17, 13, 1])  # lengths of documents; the windows of sliding attention are shorter

QUICK = ("llama", "gpt2", "gpt_neox", "gemma2", "bloom", "mpt", "opt", "gpt_neo", "gpt_oss", "falcon_alibi", "mamba")
"""Grouped heads, learned and rotary positions, windows with softcaps, alibi, positions from the mask, sinks, state."""

OTHERS = [name for name in ARCHITECTURES | NEWER if name not in QUICK]


def some_rows() -> tuple[Tensor, Tensor]:
    """Ids and documents [3, 36]; the last row is padded."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB_SIZE, (len(ROWS), 36), generator=generator)
    documents = torch.zeros_like(ids)
    for row, lengths in enumerate(ROWS):
        numbers = torch.repeat_interleave(torch.tensor(lengths))
        documents[row] = numbers[-1]  # padding counts to the last
        documents[row, : len(numbers)] = numbers
    return ids, documents


def each_alone(model, ids: Tensor) -> list[Tensor]:
    pieces = [part for row, lengths in zip(ids, ROWS, strict=True) for part in row[: sum(lengths)].split(lengths)]
    return [last_hidden_states(model, part[None])[0] for part in pieces]


def in_rows(hidden_states: Tensor) -> list[Tensor]:
    return [
        part for row, lengths in zip(hidden_states, ROWS, strict=True) for part in row[: sum(lengths)].split(lengths)
    ]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_document_in_a_row_is_as_it_is_alone(name: str) -> None:
    if (ARCHITECTURES | NEWER)[name][0] not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    model = load_causal_lm(tiny_architecture(name), dtype=torch.float32)
    ids, documents = some_rows()
    assert can_be_cut(model) == (model.config.model_type not in CARRIES_A_STATE), "what the planner goes by"
    for grad in (False, True):  # the masks of the two are not of one kind
        with torch.set_grad_enabled(grad):
            together = in_rows(packed_hidden_states(model, ids, documents).detach())
        with torch.no_grad():
            alone = each_alone(model, ids)
        for ours, theirs in zip(together, alone, strict=True):
            assert_same_numbers(ours, theirs, tolerance=1e-5 * max(1.0, theirs.abs().max().item()), what=name)


def test_rows_of_one_document_are_computed_as_ever_and_no_mask_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(tiny_architecture("llama"), dtype=torch.float32)
    monkeypatch.setattr("engine.models.core.cut", None)
    ids, _ = some_rows()
    with torch.no_grad():
        assert torch.equal(packed_hidden_states(model, ids, None), last_hidden_states(model, ids))


def test_positions_begin_again_with_each_document() -> None:
    documents = torch.tensor([[0, 0, 1, 2, 2, 2], [0, 0, 0, 0, 1, 1]])
    assert positions_in(documents).tolist() == [[0, 1, 0, 0, 1, 2], [0, 1, 2, 3, 0, 1]]


def _is_dropout(module, name: str, value: object) -> bool:
    return isinstance(value, float) and ("drop" in name or isinstance(module, torch.nn.Dropout))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "bloom", "opt", "mamba"])
def test_gradients_of_packed_rows_are_the_sum_over_their_documents(name: str, checkpointing: bool) -> None:
    model = load_causal_lm(tiny_architecture(name), dtype=torch.float32)
    if checkpointing:
        model.train()
        for module in model.modules():  # no chance in it
            vars(module).update({name: 0.0 for name, value in vars(module).items() if _is_dropout(module, name, value)})
        _enable_checkpointing(model)
    ids, documents = some_rows()
    weights = torch.randn(len(ids), 36, 32, generator=torch.Generator().manual_seed(1))

    def gradients(states: list[Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        some = [weight[:, : states[0].shape[1]] for weight in in_rows(weights)]  # OPT's last states are narrower
        sum((state * weight).sum() for state, weight in zip(states, some, strict=True)).backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    expected = gradients(each_alone(model, ids))
    found = gradients(in_rows(packed_hidden_states(model, ids, documents)))
    assert found.keys() == expected.keys()
    for parameter, value in expected.items():
        assert_same_numbers(
            found[parameter], value, tolerance=1e-5 * max(1.0, value.abs().max().item()), what=f"{name} {parameter}"
        )
