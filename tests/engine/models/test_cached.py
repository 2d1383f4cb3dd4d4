from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.models.cached import GrowingRows
from engine.models.core import last_hidden_states
from engine.models.load import load_causal_lm
from tests.tiny import ARCHITECTURES, VOCAB_SIZE, tiny_model


def ids(length: int) -> Tensor:
    return torch.randint(1, VOCAB_SIZE, (3, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_growing_rows_are_what_whole_rows_are_and_only_the_new_token_runs(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal_lm(tiny_model(architecture), dtype=torch.float32)
    given: list[int] = []
    own = model.forward
    monkeypatch.setattr(model, "forward", lambda **how: given.append(how["input_ids"].shape[1]) or own(**how))
    rows, whole = GrowingRows(model, lambda ids: last_hidden_states(model, ids)), ids(24)
    for length in range(5, 25):
        found = rows(whole[:, :length])
        with torch.no_grad():
            expected = last_hidden_states(model, whole[:, :length])[:, -1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert given[::2] == [5] + [1] * 19
    torch.testing.assert_close(rows(whole[:, :3]), last_hidden_states(model, whole[:, :3])[:, -1])  # other rows begin


def test_model_without_a_cache_runs_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(tiny_model("llama"), dtype=torch.float32)
    monkeypatch.setattr(
        "engine.models.cached.hidden_states_and_cache", lambda m, i, c: (last_hidden_states(m, i), None)
    )
    rows, whole = GrowingRows(model, lambda ids: last_hidden_states(model, ids)), ids(9)
    for length in range(5, 10):
        expected = last_hidden_states(model, whole[:, :length])[:, -1]
        torch.testing.assert_close(rows(whole[:, :length]), expected)
