"""The original stored the logits of the whole vocabulary in fp16: 100 kB a token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.cache.identity import CacheIdentity
from engine.cache.store import CacheStore
from tests.engine.cache.some_records import random_records, row

ROWS, TOKENS = 8, 512


# Of ids drawn evenly, half of them heads: more than any text needs.
@pytest.mark.parametrize(("vocab_size", "largest"), [(50_304, 35), (151_646, 37)])
def test_a_token_takes_some_thirty_bytes_on_disk(tmp_path: Path, vocab_size: int, largest: int) -> None:
    identity = CacheIdentity("t", "k", "", 1.0, 12, vocab_size, 0, "fp32", "none")
    records = random_records(ROWS * TOKENS, 12, vocab_size)
    with CacheStore.open(tmp_path / "cache", identity, writable=True) as store:
        store.commit([(row(number), TOKENS) for number in range(ROWS)], records)
    bytes_on_disk = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    fp16_logits = np.dtype(np.float16).itemsize * vocab_size
    assert bytes_on_disk / len(records) < largest
    assert fp16_logits / (bytes_on_disk / len(records)) > 2_800
