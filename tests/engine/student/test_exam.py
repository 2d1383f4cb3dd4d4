"""Questions are the text's own, and a model that knows the text answers them; the figures say how sure they are."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from engine.models.load import load_causal_lm, load_tokenizer
from engine.student.exam import GUESSING, Examinee, figure, questions, share
from tests.tiny import VOCAB_SIZE, tiny_model, tiny_texts

_WORDS = tiny_texts(1)[0].split()
TEXTS = [" ".join(random.Random(number).choices(_WORDS, k=120)) for number in range(6)]


def examinee(most_tokens: int = 64, bos_id: int | None = None) -> Examinee:
    folder = tiny_model("llama", num_layers=2)
    tokenizer = load_tokenizer(folder)
    return Examinee(
        load_causal_lm(folder, dtype=torch.float32),
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        vocab_size=VOCAB_SIZE,
        most_tokens=most_tokens,
        bos_id=bos_id,
    )


@pytest.mark.parametrize("task", GUESSING)
def test_questions_are_made_of_the_text_and_are_the_same_each_time(task: str) -> None:
    asked = questions(task, TEXTS, 20, seed=0)
    assert len(asked) == 20
    assert asked == questions(task, TEXTS, 20, seed=0)
    assert asked != questions(task, TEXTS, 20, seed=1)
    for question in asked:
        assert f"{question.context} {question.choices[0]}" in TEXTS[question.document]
        assert len({*question.choices}) == len(question.choices) == (1 if task == "next-word" else 4)
    assert questions(task, ["too short"], 20, seed=0) == []


@pytest.mark.parametrize("most_tokens", [16, 64])
def test_a_models_scores_are_those_of_its_logits(most_tokens: int) -> None:
    asked, model = (
        examinee(most_tokens, bos_id=0),
        load_causal_lm(tiny_model("llama", num_layers=2), dtype=torch.float32),
    )
    ids = torch.randint(2, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(0)).tolist()
    tokens, loss = asked.losses(ids)
    wanted = 0.0
    for begin in range(0, len(ids), most_tokens - 1):
        window = torch.tensor([[0, *ids[begin : begin + most_tokens - 1]]])
        with torch.no_grad():
            logits = model(window).logits[0, :-1, :VOCAB_SIZE]
        wanted += float(nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
    assert tokens == 70
    assert loss == pytest.approx(wanted, rel=1e-4)


def test_a_model_that_says_the_text_has_all_answers_right() -> None:
    asked = examinee()

    class Knows(Examinee):
        def _scores(self, rows):  # type: ignore[no-untyped-def]
            return [(torch.tensor([0.0 if number == 0 else -9.0]), number == 0) for number in range(len(rows))]

    asked.__class__ = Knows
    for task in GUESSING:
        assert all(asked.is_right(task, question) for question in questions(task, TEXTS, 5, seed=0))


def test_an_interval_holds_the_mean_and_narrows_with_more_documents() -> None:
    draw = np.random.default_rng(0)
    few, many = (figure(draw.normal(3, 1, count), np.ones(count), 0) for count in (10, 1000))
    for each in (few, many):
        assert each.low < each.mean < each.high
    assert many.high - many.low < few.high - few.low
    for too_few in (1, 5):
        alone = figure(np.arange(1.0, too_few + 1), np.ones(too_few), 0)
        assert alone.low == alone.mean == alone.high


def test_the_share_of_right_answers_is_never_certain():
    """A bootstrap of equal answers has no width: one right answer of one was "better than guessing"."""
    for right, count in ((0, 4), (1, 1), (4, 4), (100, 100)):
        told = share(right, count)
        assert told.low <= told.mean <= told.high
        assert told.low < told.high
    assert share(1, 1).low < 0.25 < share(4, 4).low
    assert share(30, 100).as_list() == pytest.approx([0.3, 0.2189, 0.3958], abs=1e-3)
