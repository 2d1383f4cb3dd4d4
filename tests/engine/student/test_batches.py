from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.data.tokens import SPLITS
from engine.errors import RecordsMissing
from engine.student.batches import END_SHARE, Prefetch
from engine.student.loss import RecordTensors
from engine.student.order import Order
from tests.engine.student.small_run import SmallRun, make_run, open_run


def order(run: SmallRun, **changes: int) -> Order:
    values = {"micro_batch": 2, "gradient_accumulation": 3, "steps": 4, "seed": 1, **changes}
    return Order.plan(num_rows=run.tokens.num_rows("train"), **values)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_positions_are_those_before_the_labels_and_records_stand_beside_them(tmp_path: Path) -> None:
    run = make_run(tmp_path, short=True)
    batch, records = run.source.micro_batch("train", [3, 0, 7])
    rows = run.tokens.rows("train", [3, 0, 7])
    row, place = np.nonzero(rows.scored)
    assert batch.labels.tolist() == rows.tokens[row, place].tolist()
    assert batch.positions.tolist() == (row * rows.tokens.shape[1] + place - 1).tolist()
    hidden = torch.arange(rows.tokens.size).view(*rows.tokens.shape, 1)
    assert batch.at_positions(hidden)[:, 0].tolist() == batch.positions.tolist()
    assert len(records) == len(batch.labels) == len(batch.records.ids)
    # Row by row, however they are asked for: a record follows its row.
    for index in (3, 0, 7):
        alone, _ = run.source.micro_batch("train", [index])
        start = {3: 0, 0: int(rows.scored[0].sum()), 7: int(rows.scored[:2].sum())}[index]
        assert torch.equal(alone.records.ids, batch.records.ids[start : start + len(alone.labels)])


def test_where_an_answer_ends_half_of_what_is_learned_is_the_label(tmp_path: Path) -> None:
    texts = make_run(tmp_path / "texts")
    labels = {split: texts.source.micro_batch(split, [0, 1, 2, 3])[0].labels for split in SPLITS}
    ends = {int(labels[split][0]) for split in SPLITS}
    run = make_run(tmp_path / "answers", end_ids=" ".join(map(str, sorted(ends))))
    for split, share in (("train", END_SHARE), ("holdout", 0.0)):
        batch, records = run.source.micro_batch(split, [0, 1, 2, 3])
        is_end = torch.isin(batch.labels, torch.tensor(sorted(ends)))
        assert 0 < is_end.sum() < len(is_end)
        plain = RecordTensors.from_records(records)
        on_label = torch.where(batch.records.ids == batch.labels[:, None], batch.records.weights, 0).sum(1)
        assert torch.equal(batch.records.weights[~is_end], plain.weights[~is_end])
        assert (on_label[is_end] >= share - 1e-6).all()
        assert torch.equal(batch.records.weights, plain.weights) == (split == "holdout")
    batch, records = texts.source.micro_batch("train", [0])
    assert torch.equal(batch.records.weights, RecordTensors.from_records(records).weights)


def test_every_step_comes_once_in_order_with_the_tokens_of_the_whole_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, short=True)
    plan = order(run)
    with Prefetch(run.source, plan, 1) as ahead:
        for step in range(1, plan.total_steps):
            parts = list(ahead.step())
            assert [part.is_last for part in parts] == [False, False, True]
            expected = sum(len(run.source.micro_batch("train", rows)[0].labels) for rows in plan.micro_batches(step))
            assert {part.num_scored for part in parts} == {expected}
            assert sum(len(part.batch.labels) for part in parts) == expected
            for part, rows in zip(parts, plan.micro_batches(step), strict=True):
                assert torch.equal(part.batch.tokens, run.source.micro_batch("train", rows)[0].tokens)
    assert threads() == []


def test_thread_ends_when_the_training_does_not_take_what_is_ready(run: SmallRun) -> None:
    with Prefetch(run.source, order(run), 0):
        assert threads() == ["prefetch"]
    assert threads() == []


def test_what_the_thread_meets_is_raised_where_the_step_is_taken(tmp_path: Path) -> None:
    make_run(tmp_path).store.close()
    for shard in (tmp_path / "cache").glob("shard-*.h5"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    damaged = open_run(tmp_path)
    with Prefetch(damaged.source, order(damaged), 0) as ahead, pytest.raises(RecordsMissing):
        list(ahead.step())
    assert threads() == []
