"""A kill in mid-write left the original with an HDF5 file that would not open."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import h5py
import pytest

from engine.cache.check import damaged_shards
from tests.engine.cache.some_records import wave
from tests.engine.cache.test_store import IDENTITY, POINTS, fill, reading


@pytest.mark.parametrize("point", POINTS)
def test_every_file_that_a_killed_writer_leaves_under_its_name_opens(tmp_path: Path, point: str) -> None:
    pid = os.fork()
    if pid == 0:
        os.environ["TINYDISTILL_CRASH_AT"] = f"{point}:2"  # in the middle of the second shard
        fill(tmp_path / "cache")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    for path in (tmp_path / "cache").glob("shard-*.h5"):
        with h5py.File(path) as file:
            assert len(file) > 0
    with reading(tmp_path / "cache") as store:
        assert [*store.problems, *damaged_shards(store)] == []
        first = [name for name, _ in wave(0)[0]]
        assert store.missing(first) == [], "what was committed before the kill is whole"
    fill(tmp_path / "cache")
    with reading(tmp_path / "cache") as store:
        assert store.identity == IDENTITY
        assert store.num_shards == 3
        assert [*store.problems, *damaged_shards(store)] == []
