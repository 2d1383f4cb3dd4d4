"""The original marked a cache complete that held a part of the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.data.tokens import TokenFile
from engine.errors import RecordsMissing, Stopped
from engine.models.resident import ResidentTeacher
from tests.engine.teacher.test_score import StopsAfter, a_store, run, token_file
from tests.tiny import tiny_model


def test_rows_that_were_not_scored_are_missing_until_they_are(tmp_path: Path) -> None:
    import torch

    teacher = ResidentTeacher(tiny_model("llama"), dtype=torch.float32)
    tokens_path = token_file(tmp_path / "tokens.h5")
    with pytest.raises(Stopped):
        run(teacher, tokens_path, tmp_path / "cache", control=StopsAfter(5))
    with TokenFile(tokens_path) as tokens, a_store(tmp_path / "cache") as store:
        hashes = tokens.hashes("train")
        missing = store.missing(hashes)
        assert 0 < len(missing) < len(hashes), "a part is there"
        with pytest.raises(RecordsMissing, match=f"{len(missing)} of {len(hashes)} rows have no record"):
            store.fetch(hashes)
    run(teacher, tokens_path, tmp_path / "cache")
    with TokenFile(tokens_path) as tokens, a_store(tmp_path / "cache") as store:
        assert store.missing(tokens.hashes("train")) == []
        assert len(store.fetch(tokens.hashes("train"))) == int(np.sum(tokens.num_scored("train")))


def test_a_shard_that_the_journal_does_not_name_does_not_count(tmp_path: Path) -> None:
    import torch

    teacher = ResidentTeacher(tiny_model("llama"), dtype=torch.float32)
    tokens_path = token_file(tmp_path / "tokens.h5")
    run(teacher, tokens_path, tmp_path / "cache")
    journal = tmp_path / "cache" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))
    with TokenFile(tokens_path) as tokens, a_store(tmp_path / "cache") as store:
        assert store.missing(tokens.hashes("holdout"), top1=True) != []
