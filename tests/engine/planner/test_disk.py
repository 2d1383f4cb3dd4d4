"""Predicted bytes on disk against the files that are really written."""

from pathlib import Path

import numpy as np
import pytest

from engine.cache.bitpack import id_code
from engine.data.packing import PackedRow
from engine.data.tokens import TokenFileWriter
from engine.planner import disk
from tests.engine.planner.machines import PYTHIA_70M


@pytest.mark.parametrize("vocab_size", [2, 320, 50_304, 151_936, 262_144])
@pytest.mark.parametrize("record_size", [1, 12, 50, 255])
def test_ids_take_what_the_cache_packs_them_into(record_size: int, vocab_size: int) -> None:
    size = min(record_size, vocab_size)
    beside = min(size, 3) + 3
    assert disk.record_bytes(record_size, vocab_size) - beside == id_code(size, vocab_size).num_bytes


@pytest.mark.parametrize("vocab_size", [320, 50_304])
def test_the_token_file_is_at_most_what_was_predicted(tmp_path: Path, vocab_size: int) -> None:
    length, rows = 128, 1_000
    scored = np.arange(length) > 0
    path = tmp_path / "tokens.h5"
    generator = np.random.default_rng(0)
    with TokenFileWriter(
        path, sequence_length=length, vocab_size=vocab_size, pad_id=0, eos_id=0, attributes={}
    ) as writer:
        for _ in range(rows):
            writer.add("train", PackedRow(generator.integers(0, vocab_size, length, dtype=np.int32), scored))
        writer.commit()
    assert 1.0 <= disk.tokens_bytes(rows * length, vocab_size) / path.stat().st_size * 1.1 < 1.3


def test_checkpoints_to_keep_the_best_and_the_one_being_written_all_count() -> None:
    one = disk.checkpoint_bytes(PYTHIA_70M, "adamw")
    assert one == 12 * PYTHIA_70M.parameters
    sizes = [
        disk.run_bytes(
            tokens=10**6,
            record_size=12,
            vocab_size=50_304,
            student=PYTHIA_70M,
            optimizer="adamw",
            keep_checkpoints=keep,
            from_teacher=False,
        )
        for keep in (1, 2)
    ]
    assert sizes[1] - sizes[0] == one
    assert sizes[0] > 3 * one
