from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.data.packing import PackedRow, TokenisedDocument
from engine.data.tokens import TokenFile, TokenFileWriter
from engine.student.generate import continuations, holdout_prompts, lengthened, writing_speed
from engine.student.learn import next_logits_of
from tests.engine.data.small_data import pack
from tests.engine.student.small_run import SmallRun, make_run
from tests.tiny import VOCAB_SIZE, tiny_model


def counting(ids: Tensor) -> Tensor:
    """Always the next number, and a padded column that is likelier still."""
    logits = torch.zeros(len(ids), 14)
    logits[torch.arange(len(ids)), (ids[:, -1] + 1) % 10] = 60.0
    logits[:, 13] = 90.0
    return logits


def test_continues_until_the_text_ends_or_long_enough() -> None:
    texts = continuations(counting, [[1, 2], [6, 7]], vocab_size=10, end_ids={0}, seed=0, max_new_tokens=5)
    assert texts == [[3, 4, 5, 6, 7], [8, 9, 0]]


@pytest.mark.parametrize(("prompts", "rows"), [(1, 1), (2, 4), (3, 4), (4, 4), (5, 8)])
def test_several_rows_are_filled_up_to_a_multiple_of_four(prompts: int, rows: int) -> None:
    """A product in float32 of two or three rows takes longer than of four; what fills up draws nothing."""
    seen = []

    def next_logits(ids: Tensor) -> Tensor:
        seen.append(len(ids))
        return torch.nn.functional.one_hot((ids[:, -1] + 1) % 10, 10) * 100.0

    texts = continuations(
        next_logits, [[number] for number in range(prompts)], vocab_size=10, end_ids=(), seed=0, max_new_tokens=2
    )
    assert texts == [[(number + 1) % 10, (number + 2) % 10] for number in range(prompts)]
    assert set(seen) == {rows}


def test_prompts_may_be_of_different_lengths_and_end_in_different_ways() -> None:
    texts = continuations(counting, [[4], [1, 2, 6], [5, 5]], vocab_size=10, end_ids={0, 7}, seed=0, max_new_tokens=5)
    assert texts == [[5, 6, 7], [7], [6, 7]]


def test_no_prompt_gives_no_text() -> None:
    assert continuations(counting, [], vocab_size=10, end_ids={0}, seed=0) == []


def test_time_that_is_up_ends_the_text() -> None:
    assert continuations(counting, [[1]], vocab_size=10, end_ids=(), seed=0, max_seconds=-1) == [[2]]


def test_broken_model_ends_the_text_instead_of_the_run() -> None:
    def broken(ids: Tensor) -> Tensor:
        return torch.full((len(ids), 10), float("nan"))

    assert continuations(broken, [[1]], vocab_size=10, end_ids={0}, seed=0) == [[]]


def test_same_seed_says_the_same_and_leaves_torchs_generator_alone(run: SmallRun) -> None:
    next_logits = next_logits_of(run.learner(tiny_model("qwen2", num_layers=2)))
    state = torch.get_rng_state()
    first, again = (
        continuations(next_logits, [[5, 6, 7]], vocab_size=VOCAB_SIZE, end_ids={0}, seed=4, max_new_tokens=6)
        for _ in range(2)
    )
    other = continuations(next_logits, [[5, 6, 7]], vocab_size=VOCAB_SIZE, end_ids={0}, seed=5, max_new_tokens=6)
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_prompts_are_beginnings_of_holdout_texts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", num_holdout=9)
    prompts = holdout_prompts(run.tokens, count=3, length=8)
    rows = run.tokens.rows("holdout", [0, 3, 6])
    assert prompts[0] == rows.tokens[0, : len(prompts[0])].tolist()
    assert len(prompts) == 3
    assert len(holdout_prompts(make_run(tmp_path / "one", num_holdout=1).tokens)) == 1
    assert holdout_prompts(make_run(tmp_path / "none", num_holdout=0).tokens) == []


def _holdout(path: Path, rows: list[PackedRow], eos_id: int = 0, end_ids: str = "") -> TokenFile:
    with TokenFileWriter(path, sequence_length=16, vocab_size=100, pad_id=1, eos_id=eos_id, attributes={}) as writer:
        for row in rows:
            writer.add("holdout", row)
        writer.keep("end_ids", end_ids)
        writer.commit()
    return TokenFile(path)


def test_the_prompt_of_a_conversation_ends_where_its_answer_begins(tmp_path: Path) -> None:
    asked, answered = [20, 21, 22, 23], [30, 31, 9]
    chat = TokenisedDocument(asked + answered, [False] * 4 + [True] * 3, whole=True)
    rows = list(
        pack(
            [chat, TokenisedDocument([40, 41, 42, 9], [False, False, True, True], whole=True)],
            16,
            eos_id=None,
            packing=True,
        )
    )
    tokens = _holdout(tmp_path / "tokens.h5", rows, end_ids="9")
    assert holdout_prompts(tokens, count=1) == [asked]
    assert tokens.end_ids == {0, 9}


def test_the_rest_of_a_text_is_no_prompt(tmp_path: Path) -> None:
    texts = [TokenisedDocument(list(range(10, 32))), TokenisedDocument(list(range(50, 57)))]
    tokens = _holdout(tmp_path / "tokens.h5", list(pack(texts, 16, eos_id=0, packing=True)))
    assert tokens.num_rows("holdout") == 2
    assert holdout_prompts(tokens, count=2, length=4) == [[10, 11, 12, 13], [50, 51, 52, 53]]


def test_a_row_in_which_no_text_begins_gives_no_prompt_where_another_row_has_a_beginning(tmp_path: Path) -> None:
    texts = [TokenisedDocument(list(range(10, 10 + 52))), TokenisedDocument(list(range(70, 87)))]
    tokens = _holdout(tmp_path / "tokens.h5", list(pack(texts, 16, eos_id=0, packing=True)))
    assert tokens.num_rows("holdout") == 5  # the second and the third hold the middle of the long text
    assert holdout_prompts(tokens, count=2, length=4) == [[10, 11, 12, 13], [70, 71, 72, 73]]
    assert holdout_prompts(tokens, count=5, length=4)[1] == [26, 27, 28, 29]  # a part without any beginning


def test_rows_of_many_lengths_have_few_shapes() -> None:
    shapes = {lengthened(torch.ones(3, length, dtype=torch.int64)).shape for length in range(1, 49)}
    assert shapes == {(3, 16), (3, 32), (3, 48)}
    assert lengthened(torch.tensor([[5, 6]])).tolist() == [[5, 6, *[0] * 14]]


def test_writing_speed_is_of_one_text_without_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    now, seen = [100.0], []

    def next_logits(ids: Tensor) -> Tensor:
        seen.append(ids.tolist())
        now[0] += 5.0 if len(seen) == 1 else 0.125  # the prompt takes long
        return counting(ids)

    monkeypatch.setattr("engine.student.generate.time.monotonic", lambda: now[0])
    assert writing_speed(next_logits, [1, 2], vocab_size=10) == 8.0
    assert seen[0] == [[1, 2]]
    assert seen[-1] == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 0]]


def test_writing_speed_of_a_slow_model_is_found_after_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def next_logits(ids: Tensor) -> Tensor:
        now[0] += 4.0
        return counting(ids)

    monkeypatch.setattr("engine.student.generate.time.monotonic", lambda: now[0])
    assert writing_speed(next_logits, [1], vocab_size=10) == 0.25
    assert now[0] == 8.0
