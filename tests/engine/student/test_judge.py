from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.student.evaluate import HoldoutBatches, evaluate, evaluate_teacher
from engine.student.judge import COLUMNS, DocumentSums, Unigram, bits_per_byte, chance_sums, intervals
from tests.engine.student.small_run import make_run
from tests.tiny import VOCAB_SIZE

EOS = 0


def test_a_unigram_model_is_a_distribution_that_knows_the_counts() -> None:
    counts = np.array([90, 9, 1, 0, 0, 0])
    found = Unigram.from_counts(counts)
    probs = np.exp(found.log_probs)
    assert math.isclose(probs.sum(), 1.0)
    assert probs[0] == pytest.approx(0.9, abs=0.02)
    assert (probs > 0).all()
    assert np.allclose(np.exp(Unigram.from_counts(np.zeros(4, np.int64)).log_probs), 0.25)


def test_more_unseen_tokens_in_the_text_are_expected_where_more_were_seen_once() -> None:
    once, often = np.ones(50, np.int64), np.full(50, 20)
    unseen = []
    for seen in (once, often):
        counts = np.concatenate([seen, np.zeros(50, np.int64)])
        unseen.append(np.exp(Unigram.from_counts(counts).log_probs)[50:].sum())
    assert unseen[0] > 3 * unseen[1]


def test_chance_is_the_loss_of_the_training_texts_frequencies(tmp_path: Path) -> None:
    run = make_run(tmp_path, short=True)
    unigram = Unigram.of(run.tokens)
    rows = run.tokens.rows("train", range(run.tokens.num_rows("train")))
    counts = np.bincount(rows.tokens[rows.scored], minlength=VOCAB_SIZE)
    assert np.array_equal(unigram.log_probs, Unigram.from_counts(counts).log_probs)
    sums = chance_sums(run.source, unigram, micro_batch=4, eos_id=EOS)
    held = run.tokens.rows("holdout", range(run.tokens.num_rows("holdout")))
    assert sums[:, 1].sum() == pytest.approx(-unigram.log_probs[held.tokens[held.scored]].sum())
    assert sums[:, 0].sum() == held.scored.sum()


@pytest.mark.parametrize("micro_batch", [1, 4, 7])
def test_sums_of_documents_are_those_of_the_whole_in_any_batches(tmp_path: Path, micro_batch: int) -> None:
    run = make_run(tmp_path, short=True, num_holdout=7)
    learner = run.learner()
    documents, of_teacher = DocumentSums(EOS), DocumentSums(EOS)
    metrics = evaluate(
        learner, HoldoutBatches(run.source, micro_batch), vocab_size=VOCAB_SIZE, temperature=1.0, chunk_tokens=13,
        documents=documents,
    )  # fmt: skip
    teacher = evaluate_teacher(HoldoutBatches(run.source, micro_batch), documents=of_teacher)
    table = documents.table()
    assert table.shape[1] == len(COLUMNS)
    assert table[:, 0].sum() == metrics.tokens
    assert table[:, 1].sum() / metrics.tokens == pytest.approx(metrics.holdout_loss)
    assert table[:, 2].sum() / metrics.tokens == pytest.approx(metrics.kl_to_teacher, abs=1e-6)
    assert table[:, 3].sum() / metrics.tokens == pytest.approx(metrics.top1_agreement)
    assert of_teacher.table()[:, 1].sum() / teacher.tokens == pytest.approx(teacher.holdout_loss)
    assert np.array_equal(of_teacher.table()[:, 0], table[:, 0]), "the same documents, in the same order"
    alone = DocumentSums(EOS)
    evaluate(
        learner,
        HoldoutBatches(run.source, 3),
        vocab_size=VOCAB_SIZE,
        temperature=1.0,
        chunk_tokens=50,
        documents=alone,
    )
    assert np.allclose(alone.table(), table, atol=1e-4)


def test_a_document_ends_with_its_last_token_and_may_reach_over_rows() -> None:
    class Batch:
        tokens = torch.tensor([[5, 6, EOS, 7, 8], [9, EOS, 4, EOS, EOS]])  # the last one may be padding
        positions = torch.tensor([0, 1, 2, 3, 5, 6, 7])

    documents = DocumentSums(EOS)
    documents.add(Batch(), torch.arange(7.0), torch.zeros(7), torch.ones(7))  # type: ignore[arg-type]
    # Labels: 6, EOS | 7, 8, EOS | 4, EOS
    assert documents.table()[:, 0].tolist() == [2, 3, 2]
    assert documents.table()[:, 1].tolist() == [0 + 1, 2 + 3 + 4, 5 + 6]
    rows = DocumentSums(None)
    rows.add(Batch(), torch.arange(7.0), torch.zeros(7), torch.ones(7))  # type: ignore[arg-type]
    assert rows.table()[:, 0].tolist() == [4, 3]


def test_intervals_hold_the_figure_and_narrow_with_more_documents() -> None:
    numbers = np.random.default_rng(0)

    def tables(count: int) -> dict[str, np.ndarray]:
        tokens = numbers.integers(20, 60, count).astype(float)
        found = {}
        for name, loss in (("teacher", 3.0), ("before", 8.0), ("after", 4.0), ("chance", 7.0)):
            each = loss + 0.5 * numbers.standard_normal(count)
            found[name] = np.stack([tokens, tokens * each, tokens * 0.8, tokens * 0.5], 1)
        return found

    few, many = intervals(tables(20), seed=1), intervals(tables(500), seed=1)
    assert few.keys() == {"holdout_loss", "kl_to_teacher", "top1_agreement", "gap_closed", "loss_beyond_teacher"}
    assert many["holdout_loss"][0] < 4.0 < many["holdout_loss"][1]
    assert many["gap_closed"][0] < 0.75 < many["gap_closed"][1]
    width = {
        name: found["holdout_loss"][1] - found["holdout_loss"][0] for name, found in (("few", few), ("many", many))
    }
    assert width["many"] < width["few"] / 2
    for too_few in (1, 5):  # their range is not even one of 95 %
        assert intervals(tables(too_few), seed=1) == {}
    assert intervals(tables(6), seed=1)


def test_bits_per_byte_by_hand() -> None:
    assert bits_per_byte(math.log(2), 8, 4) == pytest.approx(2.0)
    assert bits_per_byte(1.0, 8, 0) is None
