"""The original shuffled the data again in each phase and joined records to rows by their number."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.cache.record import Records
from engine.cache.store import CacheIdentity, CacheStore
from engine.data.tokens import TokenFile
from tests.engine.data.small_data import run_prepare
from tests.tiny import VOCAB_SIZE, tiny_texts

IDENTITY = CacheIdentity(
    teacher="t", tokenizer="k", chat_template="", temperature=1.0, record_size=2, vocab_size=VOCAB_SIZE, seed=0,
    precision="fp32", quantization="none",
)  # fmt: skip


def label_records(labels: np.ndarray) -> Records:
    """Records of a teacher that is sure of the text itself: they tell which text they were made for."""
    count = len(labels)
    return Records(
        ids=np.stack([labels, (labels + 1) % VOCAB_SIZE], axis=1).astype(np.int32),
        num_head=np.ones(count, np.uint8),
        head_log_probs=np.tile(np.array([np.log(0.5), -np.inf], np.float32), (count, 1)),
        tail_mass=np.full(count, 0.5, np.float32),
        label_log_prob=np.full(count, np.log(0.5), np.float32),
        entropy=np.ones(count, np.float32),
        top1_id=None,
        top1_log_prob=None,
    )


def test_records_follow_their_text_when_the_files_come_in_another_order(tmp_path: Path) -> None:
    texts = tiny_texts(30)
    for name, order in (("first", range(30)), ("second", range(29, -1, -1))):
        (tmp_path / name).mkdir()
        for place, number in enumerate(order):
            (tmp_path / name / f"{place:02}.txt").write_text(texts[number])
        run_prepare(tmp_path / name, tmp_path / f"{name}.h5", packing=False, sequence_length=128)
    with (
        TokenFile(tmp_path / "first.h5") as first,
        TokenFile(tmp_path / "second.h5") as second,
        CacheStore.open(tmp_path / "cache", IDENTITY, writable=True) as store,
    ):
        rows = first.rows("train", range(first.num_rows("train")))
        counts = [int(count) for count in rows.scored.sum(axis=1)]
        store.commit(list(zip(rows.hashes, counts, strict=True)), label_records(rows.tokens[rows.scored]))

        assert second.hashes("train") != first.hashes("train"), "the order is another one"
        assert store.missing(second.hashes("train")) == [], "and still each row's records are there"
        again = second.rows("train", range(second.num_rows("train")))
        records = store.fetch(again.hashes)
        np.testing.assert_array_equal(records.ids[:, 0], again.tokens[again.scored])


def test_rows_are_the_same_in_every_phase_that_reads_them(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(tiny_texts(60)))
    run_prepare(tmp_path / "text.txt", tmp_path / "tokens.h5")
    seen = []
    for _ in ("teacher", "student"):
        with TokenFile(tmp_path / "tokens.h5") as file:
            seen.append((file.hashes("train"), file.data_hash("train"), file.rows("train", [3, 0]).tokens.tolist()))
    assert seen[0] == seen[1]
