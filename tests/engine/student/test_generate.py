from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from engine.student.generate import continuations, holdout_prompts, lengthened
from engine.student.learn import next_logits_of
from tests.engine.student.small_run import SmallRun, make_run
from tests.tiny import VOCAB_SIZE, tiny_model


def counting(ids: Tensor) -> Tensor:
    """Always the next number, and a padded column that is likelier still."""
    logits = torch.zeros(len(ids), 14)
    logits[torch.arange(len(ids)), (ids[:, -1] + 1) % 10] = 60.0
    logits[:, 13] = 90.0
    return logits


def test_goes_on_until_the_text_ends_or_long_enough() -> None:
    texts = continuations(counting, [[1, 2], [6, 7]], vocab_size=10, eos_id=0, seed=0, max_new_tokens=5)
    assert texts == [[3, 4, 5, 6, 7], [8, 9]]


def test_no_prompt_gives_no_text() -> None:
    assert continuations(counting, [], vocab_size=10, eos_id=0, seed=0) == []


def test_time_that_is_up_ends_the_text() -> None:
    assert continuations(counting, [[1]], vocab_size=10, eos_id=None, seed=0, max_seconds=-1) == [[2]]


def test_broken_model_ends_the_text_instead_of_the_run() -> None:
    def broken(ids: Tensor) -> Tensor:
        return torch.full((len(ids), 10), float("nan"))

    assert continuations(broken, [[1]], vocab_size=10, eos_id=0, seed=0) == [[]]


def test_same_seed_says_the_same_and_leaves_torchs_generator_alone(run: SmallRun) -> None:
    next_logits = next_logits_of(run.learner(tiny_model("qwen2", num_layers=2)))
    state = torch.get_rng_state()
    first, again = (
        continuations(next_logits, [[5, 6, 7]], vocab_size=VOCAB_SIZE, eos_id=0, seed=4, max_new_tokens=6)
        for _ in range(2)
    )
    other = continuations(next_logits, [[5, 6, 7]], vocab_size=VOCAB_SIZE, eos_id=0, seed=5, max_new_tokens=6)
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_prompts_are_beginnings_of_holdout_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", num_holdout=9)
    prompts = holdout_prompts(run.tokens, count=3, length=8)
    rows = run.tokens.rows("holdout", [0, 3, 6])
    assert prompts == rows.tokens[:, :8].tolist()
    assert len(holdout_prompts(make_run(tmp_path / "one", num_holdout=1).tokens)) == 1
    assert holdout_prompts(make_run(tmp_path / "none", num_holdout=0).tokens) == []


def test_rows_of_many_lengths_have_few_shapes() -> None:
    shapes = {lengthened(torch.ones(3, length, dtype=torch.int64)).shape for length in range(1, 49)}
    assert shapes == {(3, 16), (3, 32), (3, 48)}
    assert lengthened(torch.tensor([[5, 6]])).tolist() == [[5, 6, *[0] * 14]]
